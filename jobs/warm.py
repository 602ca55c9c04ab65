"""Compiles the kernels for the types that measurements call them with, and ends: ``python -m jobs.warm``.

The sandbox's parent runs it once, without any stranger's file, so that no job waits for the compiler and none can
change what the next one runs. A call with other types still works: it is compiled where it is called.
"""

from __future__ import annotations

from numba import float32, float64, int64, types, uint16

from jobs import kernel

_ROWS, _ROW = float32[:, ::1], float32[::1]
_ENCODED = uint16[:, ::1]
_SCORES, _SAME, _VERDICTS = float64[:, ::1], types.boolean[::1], int64[::1]
_NLL = float64[::1]


def compile_all() -> None:
    """Compile every kernel that a measurement calls, into numba's cache."""
    kernel.score_clipped.compile((_ROWS, _ENCODED, _VERDICTS, _SCORES, _SAME, _VERDICTS))
    kernel.score_unclipped.compile((_ROWS, _ROWS, _VERDICTS, _SCORES, _SAME, _VERDICTS))
    kernel.encode_rows.compile((_ROWS, _VERDICTS, _ENCODED, _NLL, _VERDICTS))
    kernel.check_encoded.compile((_ENCODED, int64, _VERDICTS))
    kernel.apply_head_rule.compile((_ROWS, float32, _ROW, float32))


if __name__ == "__main__":
    compile_all()
