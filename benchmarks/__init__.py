"""Speed, memory and size beside llama.cpp's own tools, as ratios: ``make bench``; see docs/benchmarks.md."""
