"""Train the small Llama-architecture model that this repository ships, and write it as a GGUF.

Needed for development only, installed by hand: ``pip install torch==2.13.0 tokenizers gguf numpy``.
See ``tools/README.md`` for how to use it and what comes out.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from dataclasses import dataclass
from pathlib import Path

import demo_text
import gguf
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

REPO = Path(__file__).resolve().parent.parent
END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
SEED = 20
GGUF_NAME = "quantcard-demo-F16.gguf"
HUB_URL = "https://huggingface.co/quantcard-demo/quantcard-demo"


@dataclass(frozen=True)
class Shape:
    """The model's shape; every row of every matrix is a multiple of 256 long."""

    vocab: int = 2048
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 768
    context: int = 512
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        """Numbers in one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    batch: int = 8
    peak_rate: float = 2e-3
    last_rate: float = 1e-4
    warm_up: int = 150
    weight_decay: float = 0.1
    dropout: float = 0.1
    clip: float = 1.0
    checkpoint_every: int = 500
    report_every: int = 50


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs, as llama.cpp has it for this architecture."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def drop(x: Tensor, share: float) -> Tensor:
    """Dropout that draws eight places at a time, which on a CPU is much faster than ``F.dropout``."""
    draws = torch.empty(x.numel() // 8, dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
    kept = draws.view(x.shape) >= round(share * 256)
    return x * (kept.type_as(x) / (1 - round(share * 256) / 256))


class Block(nn.Module):
    """One layer: attention with grouped keys and values, then a gated feed-forward part."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        kv_width = shape.kv_heads * shape.head_width
        self.shape, self.dropout = shape, dropout
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The layer's output for ``x`` of shape (batch, time, width)."""
        batch, length, _ = x.shape
        h = self.attn_norm(x)
        q = self.attn_q(h).view(batch, length, self.shape.heads, -1).transpose(1, 2)
        k = self.attn_k(h).view(batch, length, self.shape.kv_heads, -1).transpose(1, 2)
        v = self.attn_v(h).view(batch, length, self.shape.kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v)
        group = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = self.attn_output(mixed.transpose(1, 2).reshape(batch, length, -1))
        x = x + (drop(mixed, self.dropout) if self.training else mixed)
        h = self.ffn_norm(x)
        h = self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + (drop(h, self.dropout) if self.training else h)


class DemoModel(nn.Module):
    """A small Llama whose output layer shares the embedding's weights."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.shape, self.dropout = shape, dropout
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        rates = shape.rope_base ** (-torch.arange(0, shape.head_width, 2) / shape.head_width)
        angles = torch.arange(shape.context)[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.layers) if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every place of ``tokens`` (batch, time)."""
        cos, sin = self.get_buffer("cos")[: tokens.shape[1]], self.get_buffer("sin")[: tokens.shape[1]]
        x = self.token_embd(tokens)
        x = drop(x, self.dropout) if self.training else x
        for block in self.blk:
            x = block(x, cos, sin)
        return F.linear(self.output_norm(x), self.token_embd.weight)


def train_tokenizer(text: str, vocab: int) -> Tokenizer:
    """A byte-level BPE of GPT-2's kind, with GPT-2's pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split(demo_text.DOCUMENT_BREAK), trainer)
    return tokenizer


def encode_documents(tokenizer: Tokenizer, text: str) -> Tensor:
    """The training stream: each document's tokens, then the end-of-text token."""
    (end,) = tokenizer.encode(END_OF_TEXT).ids
    stream: list[int] = []
    for encoding in tokenizer.encode_batch([d + "\n" for d in text.split(demo_text.DOCUMENT_BREAK)]):
        stream += [*encoding.ids, end]
    return torch.tensor(stream)


@torch.no_grad()
def held_out_perplexity(model: DemoModel, tokens: Tensor, half_precision: bool = False) -> float:
    """Perplexity over windows of 512 tokens, the second half of each scored, as llama-perplexity does."""
    model.eval()
    context, first = model.shape.context, model.shape.context // 2
    windows = tokens[: len(tokens) // context * context].view(-1, context)
    total = 0.0
    for batch in windows.split(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=half_precision):
            logits = model(batch)
        scored = logits[:, first:-1].float().flatten(0, 1)
        total += F.cross_entropy(scored, batch[:, first + 1 :].flatten(), reduction="sum").item()
    model.train()
    return math.exp(total / (len(windows) * (context - 1 - first)))


def unigram_perplexity(train: Tensor, held_out: Tensor, shape: Shape) -> float:
    """Perplexity of the training text's token frequencies (add one) on the same scored tokens."""
    counts = torch.bincount(train, minlength=shape.vocab).double() + 1
    log_probabilities = (counts / counts.sum()).log()
    windows = held_out[: len(held_out) // shape.context * shape.context].view(-1, shape.context)
    return math.exp(-log_probabilities[windows[:, shape.context // 2 + 1 :]].mean().item())


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to the last rate."""
    if step < recipe.warm_up:
        return recipe.peak_rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, steps - recipe.warm_up)
    return recipe.last_rate + (recipe.peak_rate - recipe.last_rate) * (1 + math.cos(math.pi * done)) / 2


def batch_at(stream: Tensor, step: int, batch: int, context: int) -> Tensor:
    """The windows of a step: each pass cuts the stream at a new offset and shuffles the pieces."""
    per_epoch = (len(stream) - 1) // context - 1
    picked = []
    for index in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(index, per_epoch)
        generator = torch.Generator().manual_seed(SEED + epoch)
        offset = int(torch.randint(context, (1,), generator=generator))
        start = offset + int(torch.randperm(per_epoch, generator=generator)[place]) * context
        picked.append(stream[start : start + context + 1])
    return torch.stack(picked)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; the norms' weights do not decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95))


def train(model: DemoModel, stream: Tensor, held_out: Tensor, steps: int, checkpoint: Path, resume: bool) -> None:
    """Train to the last step, saving checkpoints.

    The held-out figure is printed on the way only to be looked at: nothing is chosen by it.
    """
    recipe, shape = Recipe(), model.shape
    optimizer = make_optimizer(model, recipe)
    first = 0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"resumed at step {first}")
    began, running = time.monotonic(), 0.0
    for step in range(first, steps):
        torch.manual_seed(SEED * 1_000_003 + step)  # the same dropout, resumed or not
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, recipe)
        batch = batch_at(stream, step, recipe.batch, shape.context)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        running = loss.item() if not running else 0.95 * running + 0.05 * loss.item()
        done = step + 1
        speed = (done - first) * recipe.batch * shape.context / (time.monotonic() - began)
        if done % recipe.report_every == 0 or done == steps:
            left = (steps - done) * recipe.batch * shape.context / speed / 60
            progress = f"step {done}/{steps} loss {running:.3f}"
            print(f"{progress} {speed:.0f} tokens/s, {left:.1f} min left", flush=True)
        if done % recipe.checkpoint_every == 0 or done == steps:
            print(f"  held-out perplexity {held_out_perplexity(model, held_out, half_precision=True):.2f}")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            torch.save(state, checkpoint)


def write_gguf(path: Path, model: DemoModel, tokenizer: Tokenizer) -> None:
    """Write the model and its tokenizer: matrices in F16, norms in F32."""
    shape = model.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name("Quantcard Demo")
    writer.add_basename("quantcard-demo")
    writer.add_organization("quantcard-demo")
    writer.add_size_label(gguf.size_label(sum(p.numel() for p in model.parameters()), 0, 0, 0))
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "Quantcard Demo")
    writer.add_base_model_organization(0, "quantcard-demo")
    writer.add_base_model_repo_url(0, HUB_URL)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab)
    description = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(description["vocab"], key=description["vocab"].get)
    special = {END_OF_TEXT, PAD}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if t in special else kinds.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in description["merges"]])
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_eos_token_id(tokens.index(END_OF_TEXT))
    writer.add_pad_token_id(tokens.index(PAD))
    writer.add_add_bos_token(False)
    for name, weight in model.state_dict().items():
        writer.add_tensor(name, weight.numpy().astype(np.float16 if weight.dim() == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def note_figures(notice: Path, figures: str) -> None:
    """Put the measured figures into NOTICE.md, after the line that announces them."""
    head, mark, _ = notice.read_text(encoding="utf-8").partition("## Measured\n")
    if not mark:
        raise SystemExit(f"{notice} has no section 'Measured'")
    notice.write_text(f"{head}{mark}\n{figures}", encoding="utf-8")


def main() -> None:
    """Gather the text if it is not there, train, write the GGUF and measure it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=REPO / "localhub" / "demo_model", metavar="DIR")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps of 8 x 512 tokens")
    parser.add_argument("--resume", action="store_true", help="go on from DIR/checkpoint.pt")
    parser.add_argument("--text-only", action="store_true", help="gather this Python's text, then stop")
    args = parser.parse_args()
    out: Path = args.out
    if args.text_only or not (out / "train.txt.xz").exists():
        demo_text.gather(out)
    if args.text_only:
        return

    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    shape = Shape()
    train_text = lzma.decompress((out / "train.txt.xz").read_bytes()).decode()
    tokenizer = train_tokenizer(train_text, shape.vocab)
    stream = encode_documents(tokenizer, train_text)
    held_out = torch.tensor(tokenizer.encode((out / "heldout.txt").read_bytes().decode()).ids)
    model = DemoModel(shape, Recipe().dropout)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(stream)} training tokens, {len(held_out)} held-out tokens, {parameters} parameters")

    checkpoint = out / "checkpoint.pt"
    train(model, stream, held_out, args.steps, checkpoint, args.resume)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = weight.data.half().float()  # measured as it is shipped
    write_gguf(out / GGUF_NAME, model, tokenizer)
    ours, unigram = held_out_perplexity(model, held_out), unigram_perplexity(stream, held_out, shape)
    batch = Recipe().batch
    passes = args.steps * batch * shape.context / len(stream)
    figures = f"""Over `heldout.txt` ({len(held_out):,} tokens; windows of 512, second half of each scored):

| | perplexity for each token |
| --- | --- |
| the model (F16) | {ours:.3f} |
| unigram frequencies of the training text | {unigram:.1f} |

{parameters:,} parameters, trained for {args.steps} steps of {batch} x {shape.context} tokens
({passes:.1f} passes over {len(stream):,} tokens).
"""
    print(figures)
    if (out / "NOTICE.md").exists():
        note_figures(out / "NOTICE.md", figures)
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
