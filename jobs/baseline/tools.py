"""Verifies baselines, takes in ``.kld`` files that llama-perplexity wrote, and gives ours out as plain ones."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.canonical import atomic_file
from core.contract import BaselineCheck, BaselineToolSpec, Estimate
from core.errors import BaselineError, SettingsError, VocabularyMismatchError
from core.statistics import perplexity
from jobs import Progress, kernel
from jobs.baseline.checksums import row_sums
from jobs.baseline.kld_file import KldReader, header_bytes
from jobs.baseline.meta import BaselineMeta, check_meta, meta_path, read_meta, tokens_sha256, vocab_sha256, write_meta
from jobs.baseline.record_states import LIMIT_QUANTIZED, LIMITS
from jobs.baseline.states_file import is_states_file, restored
from jobs.baseline.states_rows import HEAD_ROWS, StatesBaseline
from jobs.llama import Model, environment
from jobs.passes import model_sha256
from jobs.scoring import KLD, RowPool


def run_tool(spec: BaselineToolSpec, progress: Progress) -> BaselineCheck:
    """Verify, import or export a baseline.

    Raises:
        BaselineError: it is missing or corrupt.
        SettingsError: no place to write to was given, or it can't be done with this format.
    """
    if spec.action != "verify" and spec.out is None:
        raise SettingsError("Say where to write it: --out PATH.")
    if is_states_file(Path(spec.path)):
        return _states(spec, progress)
    return _logits(spec, progress)


def _logits(spec: BaselineToolSpec, progress: Progress) -> BaselineCheck:
    path = Path(spec.path)
    with closing(KldReader(path)) as reader:
        meta = read_meta(path)
        check_meta(reader, meta)
        sums = _check_chunks(reader, meta, progress)
        if spec.out is not None:
            out = Path(spec.out)
            if out.absolute() != path.absolute():
                with path.open("rb") as source, atomic_file(out) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            if spec.action == "export" and out.absolute() != path.absolute():
                # Of a file that stood there before.
                meta_path(out).unlink(missing_ok=True)
            if spec.action == "import":
                if meta is not None and spec.reference is not None:
                    raise SettingsError(f"{path} has its companion already; leave --reference out.")
                meta = meta or _foreign_meta(reader, sums, spec)
                write_meta(out, meta)
            path = out
        return _check(
            path,
            reader,
            companion=meta is not None and spec.action != "export",
            reference_sha256=meta.reference_sha256 if meta else None,
            ppl=meta.ppl if meta else None,
        )


def _check(
    path: Path, reader: KldReader, *, companion: bool, reference_sha256: str | None, ppl: Estimate | None
) -> BaselineCheck:
    shape = reader.shape
    return BaselineCheck(
        path=str(path),
        format="logits",
        size_bytes=shape.file_bytes,
        n_ctx=shape.n_ctx,
        n_vocab=shape.n_vocab,
        n_chunks=shape.n_chunks,
        n_tokens=shape.n_chunks * shape.rows_per_chunk,
        companion=companion,
        reference_sha256=reference_sha256,
        ppl=ppl,
    )


def _check_chunks(reader: KldReader, meta: BaselineMeta | None, progress: Progress) -> list[int]:
    """Every chunk's checksum, after checking that its rows are distributions and, if known, that the sums agree."""
    sums = []
    total = reader.shape.n_chunks
    verdicts = np.empty(reader.shape.rows_per_chunk, np.int64)
    for index in range(total):
        progress("verifying", index, total)
        rows = reader.chunk(index)
        sums.append(row_sums(rows, 0))
        if meta is not None and sums[-1] != meta.chunk_sums[index]:
            raise BaselineError(f"{reader.path} is corrupt: chunk {index} fails its checksum. Record it again.")
        kernel.check_encoded(rows, reader.shape.n_vocab, verdicts)
        if verdicts.any():
            raise BaselineError(
                f"{reader.path} is corrupt: rows of chunk {index} are no probabilities. Record it again."
            )
    progress("verifying", total, total)
    return sums


def _foreign_meta(reader: KldReader, sums: list[int], spec: BaselineToolSpec) -> BaselineMeta:
    """A companion for a file recorded elsewhere: checksums, and the vocabulary if the reference is at hand."""
    shape = reader.shape
    known: dict[str, object] = {}
    if spec.reference is not None:
        reference = Path(spec.reference)
        with Model(reference, spec.machine) as model:
            if model.n_vocab != shape.n_vocab:
                raise VocabularyMismatchError(
                    f"{reference.name} has {model.n_vocab} tokens, {reader.path.name} {shape.n_vocab}: "
                    "it was not recorded from this model. Give the reference it was recorded from."
                )
            known = {
                "reference_name": reference.name,
                "reference_sha256": model_sha256(reference),
                "vocab_sha256": vocab_sha256(model.vocab_texts()),
                "add_bos": model.add_bos,
            }
    return BaselineMeta.model_validate(
        {
            "n_ctx": shape.n_ctx,
            "n_chunks": shape.n_chunks,
            "n_vocab": shape.n_vocab,
            "tokens_sha256": tokens_sha256(reader.tokens),
            "chunk_sums": sums,
            **known,
        }
    )


def _states(spec: BaselineToolSpec, progress: Progress) -> BaselineCheck:
    if spec.action == "import":
        raise SettingsError(f"{spec.path} is a states baseline of quantcard already; copy it with its head file.")
    n_threads = environment(spec.machine).n_threads
    with ExitStack() as stack:
        baseline = stack.enter_context(
            closing(StatesBaseline(Path(spec.path), machine=spec.machine, n_threads=n_threads))
        )
        found = _check_states(baseline, progress)
        path, size = Path(spec.path), Path(spec.path).stat().st_size
        if spec.out is not None:
            path = Path(spec.out)
            pool = stack.enter_context(RowPool(n_threads))
            _export_states(baseline, path, pool, progress)
            meta_path(path).unlink(missing_ok=True)
            size = path.stat().st_size
        shape = baseline.shape
        return BaselineCheck(
            path=str(path),
            format="states" if spec.out is None else "logits",
            size_bytes=size,
            n_ctx=shape.n_ctx,
            n_vocab=shape.n_vocab,
            n_chunks=shape.n_chunks,
            n_tokens=shape.n_chunks * shape.rows_per_chunk,
            companion=spec.out is None,
            reference_sha256=baseline.facts.reference_sha256,
            ppl=perplexity(baseline.exact_nll),
            self_check=found,
        )


def _check_states(baseline: StatesBaseline, progress: Progress) -> float:
    """Check every chunk's states, and the samples' rebuilt logits against true ones; their mean KLD (nats)."""
    reader, shape = baseline.reader, baseline.shape
    for index in range(shape.n_chunks):
        progress("verifying", index, shape.n_chunks)
        if row_sums(reader.read(index, 0, shape.rows_per_chunk), 0) != reader.chunk_sums[index]:
            raise BaselineError(f"{reader.path} is damaged: chunk {index} fails its checksum. Record it again.")
    places, true = reader.samples()
    states = np.concatenate([reader.read(int(chunk), int(row), 1) for chunk, row in places])
    head = baseline.head(HEAD_ROWS)
    rebuilt = head.run(restored(states, reader.meta.state_type))
    baseline.rebuild(rebuilt)
    n = len(places)
    scores, verdicts = np.zeros((n, 4)), np.zeros(n, np.int64)
    kernel.score_unclipped(rebuilt, true, np.zeros(n, np.int64), scores, np.zeros(n, np.bool_), verdicts)
    mean = float(scores[:, KLD].mean()) if not verdicts.any() else float("inf")
    limit = LIMITS.get(reader.meta.state_type, LIMIT_QUANTIZED)
    # A recording on another device rounds otherwise; beyond that, states and head do not belong together.
    if not mean <= max(limit, LIMIT_QUANTIZED):
        raise BaselineError(
            f"{reader.path} does not give its reference's logits back (mean KLD {mean:.3g} nats over {n} sample rows): "
            "its head is not the one it was recorded with, or one of them is damaged. Record it again."
        )
    progress("verifying", shape.n_chunks, shape.n_chunks)
    return max(0.0, mean)


def _export_states(baseline: StatesBaseline, out: Path, pool: RowPool, progress: Progress) -> None:
    """Write a plain ``.kld`` from rebuilt logits: llama-perplexity's bytes, but for roundings on the edge."""
    shape = baseline.shape
    head = baseline.head(HEAD_ROWS)
    with atomic_file(out) as file:
        file.write(header_bytes(shape, baseline.tokens))
        for chunk in range(shape.n_chunks):
            progress("exporting", chunk, shape.n_chunks)
            for row in range(0, shape.rows_per_chunk, head.n_rows):
                n = min(head.n_rows, shape.rows_per_chunk - row)
                states = baseline.reader.read(chunk, row, n)
                logits = head.run(restored(states, baseline.reader.meta.state_type))
                encoded = np.empty((n, shape.row_u16), np.uint16)
                parts = [slice(start, start + 16) for start in range(0, n, 16)]
                pool.run([partial(_encode, baseline, logits[part], encoded[part]) for part in parts])
                file.write(encoded.tobytes())
        progress("exporting", shape.n_chunks, shape.n_chunks)


def _encode(baseline: StatesBaseline, raw: NDArray[np.float32], encoded: NDArray[np.uint16]) -> None:
    """Encode the head's raw output for some rows, shape (n, n_vocab), into ``encoded``, shape (n, row_u16)."""
    baseline.rebuild(raw)
    n = len(raw)
    kernel.encode_rows(raw, np.zeros(n, np.int64), encoded, np.empty(n), np.empty(n, np.int64))
