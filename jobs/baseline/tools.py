"""Verifies baselines, takes in ``.kld`` files that llama-perplexity wrote, and gives ours out as plain ones."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from pathlib import Path

import numpy as np

from core.canonical import atomic_file
from core.contract import BaselineCheck, BaselineToolSpec
from core.errors import BaselineError, SettingsError, VocabularyMismatchError
from jobs import Progress
from jobs.baseline.kld_file import KldReader
from jobs.baseline.meta import BaselineMeta, read_meta, vocab_sha256, write_meta
from jobs.baseline.record import model_sha256
from jobs.divergence import check_rows
from jobs.llama import Model
from jobs.quality import check_meta


def run_tool(spec: BaselineToolSpec, progress: Progress) -> BaselineCheck:
    """Verify, import or export a baseline.

    Raises:
        BaselineError: it is missing or corrupt.
        SettingsError: no place to write to was given.
    """
    path = Path(spec.path)
    reader = KldReader(path)
    meta = read_meta(path)
    check_meta(reader, meta)
    sums = _check_chunks(reader, meta, progress)
    if spec.action != "verify":
        if spec.out is None:
            raise SettingsError("Say where to write it: --out PATH.")
        out = Path(spec.out)
        if out.absolute() != path.absolute():
            with path.open("rb") as source, atomic_file(out) as target:
                shutil.copyfileobj(source, target, 1 << 20)
        if spec.action == "import":
            meta = meta or _foreign_meta(reader, sums, spec)
            write_meta(out, meta)
        path = out
    shape = reader.shape
    return BaselineCheck(
        path=str(path),
        size_bytes=shape.file_bytes,
        n_ctx=shape.n_ctx,
        n_vocab=shape.n_vocab,
        n_chunks=shape.n_chunks,
        n_tokens=shape.n_chunks * shape.rows_per_chunk,
        companion=meta is not None and spec.action != "export",
        reference_sha256=meta.reference_sha256 if meta else None,
        ppl=meta.ppl if meta else None,
    )


def _check_chunks(reader: KldReader, meta: BaselineMeta | None, progress: Progress) -> list[int]:
    """Every chunk's crc32, after checking that its rows are distributions and, if known, that the sums agree."""
    sums = []
    total = reader.shape.n_chunks
    for index in range(total):
        progress("verifying", index, total)
        rows = np.asarray(reader.chunk(index))
        sums.append(zlib.crc32(rows.tobytes()))
        if meta is not None and sums[-1] != meta.chunk_crc32[index]:
            raise BaselineError(f"{reader.path} is corrupt: chunk {index} fails its checksum. Record it again.")
        check_rows(rows, reader.shape.n_vocab)
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
            "tokens_sha256": hashlib.sha256(np.ascontiguousarray(reader.tokens, dtype="<i4").tobytes()).hexdigest(),
            "chunk_crc32": sums,
            **known,
        }
    )
