"""What is closed where its block ends."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closes:
    """A context manager whose block ends in its own :meth:`close`."""

    def close(self) -> None:
        """Let go of what it holds; safe to call twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
