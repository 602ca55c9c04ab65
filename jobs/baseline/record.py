"""Records a baseline: the reference's log-probabilities over the corpus, its exact NLL, and what they belong to."""

from __future__ import annotations

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.canonical import atomic_file, sha256_file
from core.contract import BaselineResult, BaselineSpec
from core.errors import CorpusError, GGUFError
from core.gguf_files import identity
from core.statistics import perplexity
from jobs import Progress
from jobs.baseline.kld_file import KldShape, write_header
from jobs.baseline.meta import BaselineMeta, pack_nll, vocab_sha256, write_meta
from jobs.decode import ScoredLogits, batch_shape, chunk_tokens, decode_group, groups
from jobs.divergence import record_rows, run_blocks
from jobs.llama import Context, Model, environment, shard_paths


def read_corpus(path: Path) -> bytes:
    """The corpus as llama-perplexity reads it: the file's bytes, less exactly one final newline.

    Raises:
        CorpusError: missing, unreadable or empty.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"The corpus {path} can't be read ({error.strerror}). Check the path.") from None
    text = text.removesuffix(b"\n")
    if not text:
        raise CorpusError(f"The corpus {path} is empty.")
    return text


def model_sha256(path: Path) -> str:
    """sha256 of a model's file, or of its shards' joined hashes (the same identity that the Hub's files have)."""
    return identity([sha256_file(shard) for shard in shard_paths(path)])


def _encode(
    pool: ThreadPoolExecutor,
    scored: ScoredLogits,
    tokens: NDArray[np.int32],
    encoded: NDArray[np.uint16],
    nll: NDArray[np.float64],
) -> None:
    """Encode one decode's rows on all threads into ``encoded`` (chunks, rows, row_u16) and ``nll`` (chunks, rows)."""
    first = tokens.shape[1] // 2
    targets = tokens[scored.chunk, scored.row + first + 1].astype(np.int64)

    def work(part: slice) -> None:
        buffer = np.empty((part.stop - part.start, encoded.shape[2]), dtype=np.uint16)
        values = np.empty(part.stop - part.start, dtype=np.float64)
        record_rows(scored.logits[part], targets[part], buffer, values)
        encoded[scored.chunk[part], scored.row[part]] = buffer
        nll[scored.chunk[part], scored.row[part]] = values

    run_blocks(pool, len(targets), scored.logits.shape[1], work)


def record(spec: BaselineSpec, progress: Progress) -> BaselineResult:
    """Record ``spec.reference`` over ``spec.corpus`` as a ``.kld`` file and its companion, both atomically.

    Raises:
        GGUFError: the reference can't be used.
        CorpusError: the corpus can't be used.
        NonFiniteLogitsError: the reference itself is broken.
        StorageError: no room for the result.
    """
    out, reference = Path(spec.out), Path(spec.reference)
    text = read_corpus(Path(spec.corpus))
    found = environment(spec.machine)
    shape = batch_shape(n_ctx=spec.n_ctx, n_batch=spec.n_batch, n_ubatch=spec.n_ubatch)
    with Model(reference, spec.machine) as model:
        if model.add_eos:
            raise GGUFError(f"{reference.name} appends an end token to every text; perplexity is not defined for it.")
        tokens = chunk_tokens(model.tokenize(text), n_ctx=spec.n_ctx, chunks=spec.chunks)
        kld_shape = KldShape(spec.n_ctx, model.n_vocab, len(tokens))
        rows = kld_shape.rows_per_chunk
        nll = np.zeros((len(tokens), rows), dtype=np.float64)
        checksums = []
        context = Context(
            model,
            n_ctx=spec.n_ctx,
            n_seq=min(shape.n_seq, len(tokens)),
            n_batch=min(shape.n_batch, shape.n_ctx * len(tokens)),
            n_ubatch=spec.n_ubatch,
            type_k=spec.type_k,
            type_v=spec.type_v,
            flash_attn=spec.flash_attn,
            n_threads=found.n_threads,
        )
        with context, ThreadPoolExecutor(found.n_threads) as pool, atomic_file(out) as file:
            write_header(file, kld_shape, tokens)
            for group in groups(len(tokens), shape.n_seq):
                progress("recording", group.start, len(tokens))
                encoded = np.empty((len(group), rows, kld_shape.row_u16), dtype=np.uint16)
                group_tokens = tokens[group.start : group.stop]
                for scored in decode_group(context, model, group_tokens, shape):
                    _encode(pool, scored, group_tokens, encoded, nll[group.start : group.stop])
                for chunk in encoded:
                    data = chunk.tobytes()
                    checksums.append(zlib.crc32(data))
                    file.write(data)
        progress("recording", len(tokens), len(tokens))
        ppl = perplexity(nll.ravel())
        reference_sha = model_sha256(reference)
        meta = BaselineMeta(
            reference_name=reference.name,
            reference_sha256=reference_sha,
            corpus_sha256=sha256_file(Path(spec.corpus)),
            n_ctx=spec.n_ctx,
            n_chunks=len(tokens),
            n_vocab=model.n_vocab,
            vocab_sha256=vocab_sha256(model.vocab_texts()),
            add_bos=model.add_bos,
            ppl=ppl,
            nll=pack_nll(nll.ravel()),
            tokens_sha256=hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").tobytes()).hexdigest(),
            chunk_crc32=checksums,
            environment=found,
        )
    write_meta(out, meta)
    return BaselineResult(
        path=str(out),
        format="logits",
        size_bytes=out.stat().st_size,
        sha256=sha256_file(out),
        reference_sha256=reference_sha,
        ppl=ppl,
        n_ctx=spec.n_ctx,
        n_vocab=kld_shape.n_vocab,
        n_chunks=len(tokens),
        n_tokens=nll.size,
        environment=found,
    )
