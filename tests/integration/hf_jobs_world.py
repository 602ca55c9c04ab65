"""A hub on loopback whose Jobs run for real, and runners that use it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import HfApi

from bot.clock import SystemClock
from bot.hub.jobs_api import JobsApi
from bot.queue.runners.base import Task
from bot.queue.runners.hf_jobs import HfJobsRunner
from bot.queue.runners.hf_jobs_files import Files as Bucket
from bot.queue.runners.hf_jobs_money import Ledger, Spending, spending
from bot.store import Store
from core.contract import BaselineSpec, QualitySpec, SpeedSpec
from localhub import seed
from localhub.faults import Faults
from localhub.server import HubServer
from tests.integration.remote_tasks import Files

BOT, TOKEN = "quantbot", "hf_bot"
BUCKET = f"{BOT}/quantcard"
REPO = "owner/m-GGUF"
FLAVOR = "cpu-basic"


@dataclass
class HubFiles(Files):
    """Models lie on the hub."""

    root: Path = field(kw_only=True)

    def of(self, spec: BaselineSpec | QualitySpec | SpeedSpec, *, name: str = "t") -> Task:
        task = super().of(spec, name=name)  # type: ignore[arg-type]
        commit = seed.upload_files(self.root, REPO, {f"quants/{self.model.name}": self.model})
        (file,) = task.model.files
        moved = replace(file, path=f"quants/{file.path}")
        return replace(task, model=replace(task.model, repo_id=REPO, revision=commit, files=(moved,)))


class JobsWorld:
    """The hub, and a database with its ledger. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults = folder, Faults()
        self.root = folder / "hub"
        seed.create_user(self.root, BOT, token=TOKEN)
        self.server = HubServer(self.root, faults=self.faults)
        self.files = HubFiles(folder / "data", root=self.root)

    def __enter__(self) -> JobsWorld:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()

    def store(self) -> Store:
        return Store(self.folder / "bot.db")

    def api(self) -> JobsApi:
        return JobsApi(endpoint=self.server.url, token=TOKEN)

    def client(self) -> HfApi:
        return HfApi(endpoint=self.server.url, token=TOKEN)

    def runner(
        self, *, limit_usd: float = 100.0, timeout_s: float = 600, flavors: tuple[str, ...] = (FLAVOR,)
    ) -> HfJobsRunner:
        api, root = self.api(), self.files.folder / "remote"
        return HfJobsRunner(
            api,
            files=Bucket(api, root, self.store),
            ledger=Ledger(self.store, limit_usd=limit_usd),
            clock=SystemClock(),
            image="anything",
            slots=2,
            flavors=flavors,
            timeout_s=timeout_s,
            poll_s=0.2,
        )

    def jobs(self, *stages: str) -> list[dict[str, object]]:
        """The hub's Jobs in these stages (all, where none is named), newest first."""
        found = self.client().list_jobs(namespace=BOT)
        rows = [{"id": job.id, "stage": str(job.status.stage), "job": job} for job in found]
        return [row for row in rows if not stages or row["stage"] in stages]

    def spent(self) -> Spending:
        with self.store() as store:
            return spending(store, SystemClock().now())

    def in_bucket(self, prefix: str = "") -> list[str]:
        """Paths in the bucket."""
        return sorted(self.api().files(prefix))
