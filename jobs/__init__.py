"""Measures. Runs on the GPU box with no token and no network: gets paths, gives figures."""

from __future__ import annotations

from collections.abc import Callable

#: Told how far a job is: stage, done, total.
Progress = Callable[[str, int, int], None]
