"""Records states: what enters the reference's head, its exact NLL, and proof that its logits can be rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.canonical import storage_error
from core.errors import JobError, QuantcardError
from jobs import kernel
from jobs.baseline.checksums import ChunkSums, row_sums
from jobs.baseline.gguf_file import lay_out
from jobs.baseline.head import Head, HeadSource, find_head, make_head
from jobs.baseline.head_rules import HeadNotSupported
from jobs.baseline.part_file import PartFile
from jobs.baseline.record import HeadMismatch, Recording, nll_task
from jobs.baseline.states_file import ARCHITECTURE, KEY, StatesMeta, digest, plan, restored, signed, stored
from jobs.context import Context
from jobs.decode import Step
from jobs.scoring import KLD, blocks

#: Mean KLD (nats) of rebuilt from true logits that is taken, by the head's type; quantized heads get the last.
LIMITS = {"F16": 1e-7, "BF16": 1e-7, "F32": 1e-7}
LIMIT_QUANTIZED = 1e-6
#: Rows checked against true logits: in the first group, and in each later one.
_FIRST_CHECKS, _CHECKS = 32, 4
_SAMPLES = 8


class StatesRecorder:
    """Writes states to their places, and rebuilds some rows' logits in every group to compare them with true ones.

    Raises:
        HeadMismatch: this reference's head is of a kind that can't be rebuilt.
    """

    needs_states = True

    def __init__(self, recording: Recording, out: Path) -> None:
        self._recording, self._shape = recording, recording.shape
        try:
            self._source: HeadSource = find_head(recording.model.path)
        except HeadNotSupported as error:
            raise HeadMismatch(str(error)) from None
        source, spec = self._source, recording.spec
        if source.n_vocab != self._shape.n_vocab:
            raise HeadMismatch(f"The head has {source.n_vocab} rows, the vocabulary {self._shape.n_vocab} tokens.")
        self._head_path = out.with_name(f"head-{recording.reference_sha256[:16]}.gguf")
        rule = source.rule
        self._meta = StatesMeta(
            reference_name=recording.model.path.name,
            reference_sha256=recording.reference_sha256,
            corpus_sha256=recording.corpus_sha256,
            vocab_sha256=recording.vocab_sha256,
            add_bos=recording.model.add_bos,
            n_ctx=self._shape.n_ctx,
            n_chunks=self._shape.n_chunks,
            n_vocab=self._shape.n_vocab,
            n_embd=source.n_embd,
            n_samples=min(_SAMPLES, self._shape.rows_per_chunk),
            state_type=source.state_type,  # type: ignore[arg-type]
            head_file=self._head_path.name,
            scale=rule.scale,
            softcap=rule.softcap,
            has_bias=source.bias is not None,
            n_batch=spec.n_batch,
            n_ubatch=spec.n_ubatch,
            type_k=spec.type_k,
            type_v=spec.type_v,
            flash_attn=spec.flash_attn,
            environment=recording.found,
        )
        #: rows of chunk 0 whose true logits are kept: spread over the chunk
        self._samples = np.linspace(0, self._shape.rows_per_chunk - 1, self._meta.n_samples).astype(np.int32)
        self._sums = ChunkSums()
        #: of the group in the making
        self._checks: list[float] = []
        self._head: Head | None = None
        self._made_head = False

    def begin(self, part: PartFile, stack: ExitStack) -> None:
        self._part, meta = part, self._meta
        tensors = plan(meta)
        part.require(sum(tensor.n_bytes for tensor in tensors))
        self._made_head = make_head(self._source, self._head_path, reference_sha256=meta.reference_sha256)
        try:
            self._head = stack.enter_context(
                Head(
                    self._head_path,
                    reference_sha256=meta.reference_sha256,
                    n_embd=meta.n_embd,
                    machine=self._recording.spec.machine,
                    n_rows=_FIRST_CHECKS,
                    n_threads=self._recording.found.n_threads,
                )
            )
        except JobError as error:
            raise HeadMismatch(f"llama.cpp does not run its head alone: {error}") from error
        except QuantcardError as error:
            raise HeadMismatch(f"Its head alone can't be used: {error}") from error
        layout = part.path.with_name(part.path.name + ".layout")
        try:
            self._places = lay_out(
                layout,
                ARCHITECTURE,
                {
                    "general.type": "baseline",
                    "general.name": f"Baseline of {meta.reference_name}",
                    KEY: meta.model_dump_json(),
                },
                tensors,
            )
            # The header alone is copied: what an earlier run put behind it stays.
            with layout.open("rb") as file:
                header = file.read(self._places["tokens"])
        except OSError as error:
            raise storage_error(part.out, error) from error
        finally:
            layout.unlink(missing_ok=True)
        part.write(header, 0)
        part.write(np.ascontiguousarray(self._recording.tokens, dtype="<i4"), self._places["tokens"])
        rows = np.stack([np.zeros_like(self._samples), self._samples], axis=1)
        part.write(np.ascontiguousarray(rows, dtype="<i4"), self._places["sample_rows"])
        if self._source.bias is not None:
            part.write(self._source.bias, self._places["bias"])
        self._bias = np.zeros(0, np.float32) if self._source.bias is None else self._source.bias
        self._row_bytes = meta.n_embd * (4 if meta.state_type == "F32" else 2)

    def _place(self, chunk: int, row: int) -> int:
        return self._places["states"] + (chunk * self._shape.rows_per_chunk + row) * self._row_bytes

    def accepts(self, chunk: int, chunk_sum: int, nll: NDArray[np.float64]) -> bool:
        if chunk == 0 and not self._samples_agree(nll):
            return False
        n_bytes = self._shape.rows_per_chunk * self._row_bytes
        data = self._part.read(n_bytes, self._place(chunk, 0))
        if len(data) != n_bytes:
            return False
        return row_sums(np.frombuffer(data, np.uint8).reshape(-1, self._row_bytes), 0) == chunk_sum

    def _samples_agree(self, nll: NDArray[np.float64]) -> bool:
        """Whether the sample rows' logits in the file are those whose NLL was taken."""
        n, n_vocab = len(self._samples), self._shape.n_vocab
        data = self._part.read(n * n_vocab * 4, self._places["sample_logits"])
        if len(data) != n * n_vocab * 4:
            return False
        logits = np.frombuffer(data, "<f4").reshape(n, n_vocab).copy()
        targets = self._recording.tokens[0, self._shape.first + 1 + self._samples].astype(np.int64)
        found, verdicts = np.zeros(n), np.zeros(n, np.int64)
        kernel.encode_rows(logits, targets, np.empty((n, 0), np.uint16), found, verdicts)
        return bool((found == nll[self._samples]).all() and not verdicts.any())

    def rows(
        self, group: range, step: Step, logits: NDArray[np.float32], context: Context, nll: NDArray[np.float64]
    ) -> list[Callable[[], None]]:
        states = context.states(step.outputs)
        if states is None:
            raise HeadMismatch("llama.cpp's graph of this model names no tensor result_norm for its output rows.")
        if states.shape[1] != self._meta.n_embd:
            raise HeadMismatch(f"Its states have {states.shape[1]} channels, its head {self._meta.n_embd}.")
        pre_scale = np.float32(self._source.rule.pre_scale)
        values = stored(states if pre_scale == 1 else states * pre_scale, self._meta.state_type)
        for chunk, row, output, n in step.spans:
            where = group.start + chunk
            mine = np.ascontiguousarray(values[output : output + n])
            self._part.write(mine, self._place(where, row))
            self._sums.add(where, mine, row)
        self._keep_samples(group, step, logits)
        self._check(group, step, values, logits)
        empty = np.empty((0, 0), np.uint16)
        return [
            partial(nll_task, self._recording, group, block, logits, empty, nll)
            for block in blocks(step.spans, self._shape.n_vocab)
        ]

    def _keep_samples(self, group: range, step: Step, logits: NDArray[np.float32]) -> None:
        """Write the true logits of the sample rows among a decode's outputs (they are rows of chunk 0)."""
        if group.start:
            return
        for index, wanted in enumerate(self._samples):
            for output in np.nonzero((step.chunks == 0) & (step.rows == wanted))[0]:
                place = self._places["sample_logits"] + index * self._shape.n_vocab * 4
                self._part.write(np.ascontiguousarray(logits[output]), place)

    def _check(self, group: range, step: Step, values: NDArray[Any], logits: NDArray[np.float32]) -> None:
        """Rebuild some of a decode's rows and compare them with the true ones."""
        assert self._head is not None
        n = _FIRST_CHECKS if group.start == 0 else _CHECKS
        chosen = np.unique(np.linspace(0, len(values) - 1, min(n, len(values))).astype(int))
        rebuilt = self._head.run(restored(values[chosen], self._meta.state_type))
        kernel.apply_head_rule(rebuilt, np.float32(self._meta.scale), self._bias, np.float32(self._meta.softcap))
        scores, verdicts = np.zeros((len(chosen), 4)), np.zeros(len(chosen), np.int64)
        kernel.score_unclipped(
            rebuilt,
            np.ascontiguousarray(logits[chosen]),
            np.zeros(len(chosen), np.int64),
            scores,
            np.zeros(len(chosen), np.bool_),
            verdicts,
        )
        # A base row that is not finite is the reference's own fault, and is told when its NLL is taken.
        scores[verdicts == kernel.CORRUPT] = 0.0
        scores[(verdicts == kernel.NOT_FINITE) | (verdicts == kernel.ZERO), KLD] = np.inf
        self._checks.extend(scores[:, KLD].tolist())

    def published(self) -> None:
        pass

    def given_up(self) -> None:
        # A head that was there before may be another baseline's.
        if self._made_head:
            self._head_path.unlink(missing_ok=True)

    def close_group(self, group: range) -> tuple[list[int], list[float]]:
        checks, self._checks = self._checks, []
        return self._sums.take_all(group), checks

    def judge(self, checks: list[float]) -> None:
        limit = LIMITS.get(self._source.tensor.type_name, LIMIT_QUANTIZED)
        mean = float(np.mean(checks))
        if not mean <= limit:
            raise HeadMismatch(
                f"Rebuilt logits differ from the true ones by a mean KLD of {mean:.3g}, more than {limit:g}."
            )

    def end(self, nll: NDArray[np.float64], sums: list[int], checks: list[float]) -> None:
        self.judge(checks)
        self._found = max(0.0, float(np.mean(checks)))
        places, part = self._places, self._part
        part.write(np.ascontiguousarray(nll, dtype="<f8"), places["nll"])
        part.write(np.array([signed(total) for total in sums], "<i8"), places["chunk_sums"])
        part.write(np.array([self._found, len(checks)], "<f8"), places["self_check"])
        part.write(np.array([digest(part.path, places["digest"])], "<i8"), places["digest"])
        # The states' tensor is the last; its padding makes the file as long as its header says.
        padding = -(len(nll.ravel()) * self._row_bytes) % 32
        if padding:
            part.write(bytes(padding), places["states"] + nll.size * self._row_bytes)

    def result(self) -> dict[str, Any]:
        return {
            "format": "states",
            "head_path": str(self._head_path),
            "head_bytes": self._head_path.stat().st_size,
            "self_check": self._found,
        }
