"""What the checks look at: each fact is gathered once, when it is first asked for."""

from __future__ import annotations

import os
import tempfile
import time
from functools import cached_property
from pathlib import Path

import bot
from bot.doctor import llama, probes
from bot.doctor.config import Surroundings
from bot.doctor.sandbox import SandboxFacts, look_at_sandbox
from bot.doctor.token import Needs
from bot.hub.account import Answer, ask_hub
from bot.masking import Mask
from bot.settings import CONFIG_NAME, Settings
from bot.store.health import DatabaseFacts, look
from core.errors import QuantcardError, SettingsError

#: A file in use is written to more often than this, whatever the time limit of a job.
_LEFT_AFTER_S = 3600.0


class Here:
    """This installation.

    Args:
        settings: or why they can't be read; then the checks that need them can't be done.
    """

    def __init__(self, settings: Settings | SettingsError) -> None:
        self._settings = settings
        self._wall, self._steady = time.time(), time.monotonic()

    @property
    def settings(self) -> Settings:
        """The settings in force.

        Raises:
            SettingsError: they can't be read.
        """
        if isinstance(self._settings, SettingsError):
            raise self._settings
        return self._settings

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    @property
    def drift(self) -> float:
        """Seconds by which the wall clock moved more than one that nobody sets, since we began."""
        return (time.time() - self._wall) - (time.monotonic() - self._steady)

    @cached_property
    def cpu(self) -> llama.Cpu:
        """This machine's CPU."""
        return llama.read_cpu()

    @cached_property
    def asked_build(self) -> llama.Ended:
        """What llama.cpp told of itself."""
        return llama.probe_build()

    @property
    def build(self) -> llama.Build | None:
        """The same as a value, where there is one."""
        return llama.build_of(self.asked_build)

    @cached_property
    def sandbox(self) -> SandboxFacts:
        """The sandbox that works here."""
        known = isinstance(self._settings, Settings)
        return look_at_sandbox(wanted=self.settings.sandbox if known else "auto")

    @cached_property
    def hub(self) -> Answer:
        """The Hub's answer to who we are: one request."""
        return ask_hub(self.settings.hf_endpoint, self.settings.hf_token)

    @cached_property
    def database(self) -> DatabaseFacts:
        """The database, looked at without being opened for use."""
        return look(self.settings.db, now=time.time())

    @property
    def runners(self) -> list[str]:
        """The names of the configured runners."""
        return self.settings.runners

    @property
    def unsafe(self) -> bool:
        """Whether the settings say that strangers' files may be run without a sandbox."""
        return self.settings.unsafe_no_sandbox

    @property
    def needs(self) -> Needs:
        """What the token has to be able to do."""
        settings = self.settings
        writes = not settings.dry_run
        return Needs(
            pulls=settings.publish and writes,
            dataset=settings.dataset if writes else "",
            webhook=bool(settings.public_url and settings.webhook_secret) and writes,
            jobs="hf-jobs" in self.runners and writes,
            namespace=settings.hf_jobs_namespace,
            bucket=settings.hf_jobs_bucket,
        )

    @property
    def surroundings(self) -> Surroundings:
        """What stands around the settings."""
        settings, problem = self.settings, ""
        try:
            settings.protocol_in_force()
        except QuantcardError as error:
            problem = str(error)
        config = Path(os.environ.get("QUANTCARD_CONFIG", CONFIG_NAME))
        return Surroundings(
            environment=dict(os.environ),
            n_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            config=str(config),
            config_mode=_mode_of_secrets(config),
            protocol=problem,
            image=settings.hf_jobs_image if "hf-jobs" in self.runners else "",
        )

    @cached_property
    def packages(self) -> probes.PackageFacts:
        """Installed packages beside the lock, which stands in a checkout only."""
        return probes.look_at_packages(Path(bot.__file__).resolve().parents[1] / "requirements.lock")

    def folders(self) -> tuple[probes.FolderFacts, probes.FolderFacts]:
        """The data folder and the temporary one."""
        return (probes.look_at_folder(self.settings.data), probes.look_at_folder(Path(tempfile.gettempdir())))

    def temporary(self) -> list[probes.Leftover]:
        """Temporary folders of jobs that have long ended."""
        return probes.temporary_leftovers(max(_LEFT_AFTER_S, self.settings.job_timeout_s))

    def partial(self) -> list[probes.Leftover]:
        """Half-written files that nobody goes on with: downloads are resumed, so for longer than one may take."""
        return probes.partial_leftovers(self.settings.data, 7 * 86400.0)

    @cached_property
    def mask(self) -> Mask:
        """Hides our secrets in whatever is shown."""
        ours = self._settings.secrets if isinstance(self._settings, Settings) else []
        return Mask([*ours, *(os.environ.get(name, "") for name in ("HF_TOKEN", "QUANTCARD_WEBHOOK_SECRET"))])


def _mode_of_secrets(path: Path) -> int | None:
    """The permission bits of a settings file that holds a secret; None where there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        if any(line.strip().startswith(("hf_token", "webhook_secret")) for line in text.splitlines()):
            return path.stat().st_mode & 0o777
    except OSError:
        pass
    return None
