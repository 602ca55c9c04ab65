"""A small hub with files to fetch, which notes from where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bot.hub.client import Hub
from bot.store.repos import Variant
from core.gguf_files import group_variants
from localhub import seed
from localhub.faults import Faults
from localhub.server import HubServer

REPO = "up/model-GGUF"
SIZE = 5_000_003
MIB = 1 << 20


def content(seed_: int, size: int = SIZE) -> bytes:
    return b"GGUF" + bytes((seed_ * 31 + i * i) % 251 for i in range(1009)) * (size // 1009) + b"x" * (size % 1009 - 4)


class Shelf:
    """A hub with one repo, and the variants in it."""

    def __init__(self, folder: Path) -> None:
        self.faults = Faults()
        self.root, self.data = folder / "hub", folder / "data"
        self.server = HubServer(self.root, faults=self.faults)
        #: Offsets that were asked for, by name.
        self.ranges: list[tuple[str, int]] = []

    def put(self, **files: bytes) -> None:
        self.sha = seed.upload_files(self.root, REPO, {f"{name}.gguf": data for name, data in files.items()})

    def variant(self, name: str) -> Variant:
        hub = self.hub()
        (found,) = [v for v in group_variants(hub.files(REPO, revision=self.sha)) if v.name == name]
        return Variant(
            id=1, repo_id=REPO, name=found.name, key=found.key, label="Q8_0", files=found.files,
            size_bytes=found.size_bytes, revision=self.sha, inspection=None, note=None, state="current",
        )  # fmt: skip

    def hub(self) -> Hub:
        shelf = self

        class Noted(Hub):
            def _pieces(self, repo_id: str, path: str, *, revision: str, start: int, end: int) -> Iterator[bytes]:
                shelf.ranges.append((path, start))
                return super()._pieces(repo_id, path, revision=revision, start=start, end=end)

        return Noted(endpoint=self.server.url, token=None)
