"""A hub with a base model, a stranger's unquantized GGUF of it and somebody who needs one, and a bot that looks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bot.hub.client import Hub
from bot.intake.proof import prove_references
from bot.intake.references import Choice
from bot.intake.view import view
from bot.intake.watch import poll
from bot.store import Store
from bot.store.proofs import Proof
from localhub import seed
from localhub.faults import Faults
from localhub.server import HubServer
from tests.checkpoints import Checkpoint

BASE, STRANGER, UPLOADER = "org/base", "stranger/m-GGUF", "up/m-GGUF"
CARD = f"---\nbase_model: {BASE}\n---\n# M\n".encode()


class World:
    """A hub with a base model, a stranger's unquantized GGUF of it and somebody else's quant; a bot that looks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.now = folder, folder / "hub", time.time()
        self.faults = Faults()
        seed.create_user(self.root, "bot", token="hf_bot")
        self.server = HubServer(self.root, faults=self.faults)
        self.store = Store(folder / "bot.db")
        for owner in ("stranger", "up"):
            self.store.repos.follow(owner, consented=False, now=self.now)

    def __enter__(self) -> World:
        self.server.start()
        self.hub = Hub(endpoint=self.server.url, token="hf_bot")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self.store.close()

    def upload(self, repo: str, files: dict[str, Any]) -> None:
        seed.upload_files(self.root, repo, files)

    def gguf(self, checkpoint: Checkpoint, kind: str = "BF16", *, name: str = "", **more: Any) -> Path:
        path = self.folder / f"m{name}-{kind}.gguf"
        path.unlink(missing_ok=True)
        return checkpoint.gguf(path, kind, **more)

    def publish(self, checkpoint: Checkpoint, reference: Path, **base: Any) -> None:
        """The base model, the stranger's file and the quant that needs a reference."""
        self.upload(BASE, checkpoint.files(**base))
        self.upload(STRANGER, {reference.name: reference, "README.md": CARD})
        self.upload(UPLOADER, {"m-Q4_0.gguf": self.gguf(checkpoint, "Q4_0"), "README.md": CARD})

    def prove(self, *, limit: int = 5, after: float = 0.0) -> list[Proof]:
        self.now += after
        report = poll(self.store, self.hub, now=self.now)
        assert not report.errors, report.errors
        return prove_references(self.store, self.hub, now=self.now, limit=limit)

    def choice(self, repo: str = UPLOADER) -> Choice:
        [(_, found), *_] = view(self.store, trusted=()).of(repo)
        return found

    def requests(self) -> int:
        return sum(self.hub.budget.requests.values())
