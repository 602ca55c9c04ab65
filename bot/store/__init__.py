"""The one door to SQLite: connection, migrations, one module per table family."""

from __future__ import annotations

from pathlib import Path

from bot.store.answers import Answers
from bot.store.db import open_database
from bot.store.files import Files
from bot.store.jobs import Jobs
from bot.store.leases import Leases
from bot.store.proofs import Proofs
from bot.store.publishing import Publishing
from bot.store.repos import Repos
from bot.store.results import Results
from bot.store.standing import Standing
from bot.store.templates import Templates
from bot.store.watching import Watching
from core.closes import Closes


class Store(Closes):
    """All tables over one connection; a thread opens its own. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = open_database(path)
        self.repos = Repos(self.db)
        self.jobs = Jobs(self.db)
        self.leases = Leases(self.db)
        self.standing = Standing(self.db)
        self.results = Results(self.db)
        self.publishing = Publishing(self.db)
        self.answers = Answers(self.db)
        self.files = Files(self.db)
        self.watching = Watching(self.db)
        self.proofs = Proofs(self.db)
        self.templates = Templates(self.db)

    def close(self) -> None:
        """Close the connection."""
        self.db.close()
