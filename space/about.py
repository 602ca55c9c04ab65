"""The About tab: what each figure means, and what none of them can say."""

ABOUT = """
### What this is
Every GGUF file here was measured the same way against the unquantized model it was made from. A file is known by
its sha256, not by its name: when an uploader replaces it, its old figures are marked *stale* and it is measured anew.

### The figures
**Mean KLD**: at every scored token, how far the quantized model's next-token probabilities lie from the original's
(Kullback–Leibler divergence, in nats), averaged. 0 is identical. The figure to rank by.

**99.9 % KLD**: one token in a thousand is off by more than this. Two files with the same mean can differ here: this
one shows the rare, bad surprises.

**Same top p**: how often both models consider the same token the most likely one.

**PPL ratio**: perplexity on the text, divided by the original's. Near 1 is good, but errors in both directions cancel
out; below 1 does not mean better than the original.

**bpw**: bits per weight, over all tensors. **Size** is that of the files, in decimal units.

**pp, tg**: tokens per second while reading a prompt and while generating. A property of the machine as much as of the
file: they are comparable within one environment (the letter in *Env*) and nowhere else.

**Memory**: the peak while the speed was measured, at that context length.

### The marks
- **◆** on the Pareto front: no file of that size or smaller is closer to the original.
- **=** not distinguishable from the next closer file: their difference lies within its 95 % interval.
- **≠ env** measured on a machine whose noise floor is too high to rank its figures with the others'.
- **reference**: the unquantized file against its own recording. What it shows is noise, the *noise floor*.
- **imported** measured elsewhere and read from the output of llama-perplexity or llama-bench: shown, but without
  a place in the ranking, until it is measured here.
- **INVALID**: the file gives NaN or infinite logits. Reported, never averaged away.

Files are ranked together only under the same protocol and against the same baseline.

### What KLD can't tell
It says how far a file has moved from the original, not which answers got worse: a small shift may cost nothing in
chat and break a tool call, and some tasks survive a large one. It is measured on one text, in chunks as short as the
protocol says; long contexts, other languages and code may suffer earlier. And it says nothing about whether the
original was any good. Where it matters, test your own task.

### Doubts
Each measurement shows the command that repeats it. A file made to deceive could fake its figures; outliers are
measured again elsewhere.
"""
