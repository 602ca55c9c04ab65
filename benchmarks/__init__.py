"""Speed against llama.cpp's own tools, side by side in one run, on the same libllama. Ratios, never timed tests."""
