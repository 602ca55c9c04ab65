"""Settings: quantcard.toml, then the environment, then flags; each later one wins. Documented in docs/settings.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from bot.logs import Format, Level, know
from bot.protocols import Known, known_protocols, varied
from bot.publish.hours import parse_hours
from core.canonical import sha256_file
from core.contract import BaselineFormat, Machine
from core.errors import CorpusError, SettingsError
from core.protocol import CORPUS_SOURCES, Corpus, Protocol, Source
from core.sandbox.levels import Wanted

CONFIG_NAME = "quantcard.toml"


class _Environment(EnvSettingsSource):
    """The environment, where an empty value says 'none' if the setting may be empty, and counts as not given else."""

    def __call__(self) -> dict[str, Any]:
        given = super().__call__()
        fields = self.settings_cls.model_fields
        kept = {}
        for name, value in given.items():
            field = fields.get(name) or next((f for f in fields.values() if _aliased(f, name)), None)
            if value != "" or field is None:
                kept[name] = value
            elif field.default in ("", None):
                kept[name] = field.default
        return kept


def _aliased(field: FieldInfo, name: str) -> bool:
    alias = field.validation_alias
    return isinstance(alias, AliasChoices) and name in alias.choices


class Settings(BaseSettings):
    """Everything an operator may set. Names in the environment are ``QUANTCARD_`` + the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="QUANTCARD_", extra="forbid", populate_by_name=True)

    db: Path = Field(default=Path("quantcard.db"), description="the database; everything else is beside it")
    data_dir: Path | None = Field(
        default=None,
        description="models, corpora, baselines and exports; default: the database's name + '-data'",
    )
    hf_endpoint: str = Field(
        default="https://huggingface.co",
        validation_alias=AliasChoices("hf_endpoint", "HF_ENDPOINT"),
        description="the Hub's address",
    )
    hf_token: str | None = Field(
        default=None,
        validation_alias=AliasChoices("hf_token", "HF_TOKEN"),
        repr=False,
        description="the bot's token (read: poll and measure; write: pulls and the dataset)",
    )
    protocol: str = Field(default="wiki512", description="the protocol in force; 'quantcard protocols' lists them")
    protocols: Path | None = Field(
        default=None,
        description="your own protocols, as TOML; default: quantcard-protocols.toml in the working folder, if any",
    )
    corpus: Path | None = Field(default=None, description="a text file in place of the protocol's corpus")
    chunks: int | None = Field(
        default=None, ge=-1, description="chunks measured, -1: all that the corpus holds; default: the protocol's"
    )
    n_ctx: int | None = Field(default=None, ge=8, description="tokens per chunk; default: the protocol's")
    repetitions: int | None = Field(
        default=None, ge=1, description="timed repetitions of each speed test; default: the protocol's"
    )
    dataset: str = Field(default="", description="owner/name of the results dataset; empty: nothing is published")
    baseline_format: BaselineFormat = Field(
        default="states",
        description="how baselines are kept: 'states' (about a sixtieth of the size) or 'logits' (llama.cpp's .kld)",
    )
    threads: int = Field(default=0, ge=0, description="threads for measuring; 0: the physical cores")
    gpu_layers: int = Field(default=-1, description="layers on the GPU; -1: all")
    local_slots: int = Field(default=1, ge=1, description="jobs at once on this machine")
    sandbox: Wanted = Field(
        default="auto", description="what holds strangers' files: 'bubblewrap', 'uid', or 'auto' for the best there is"
    )
    unsafe_no_sandbox: bool = Field(
        default=False, description="run strangers' files also where nothing would hold them"
    )
    runners: list[str] = Field(default=["local"], description="where jobs are measured: local, hf-jobs, ray")
    job_timeout_s: float = Field(default=6 * 3600, gt=0, description="seconds after which a measurement is stopped")
    queue_timeout_s: float = Field(
        default=2 * 3600, gt=0, description="seconds a job may wait for a machine elsewhere before it is called back"
    )
    fetch_timeout_s: float = Field(default=12 * 3600, gt=0, description="seconds that fetching a model may take")
    upload_timeout_s: float = Field(
        default=3600, gt=0, description="seconds that bringing back what a job made elsewhere may take"
    )
    ray_address: str = Field(
        default="http://127.0.0.1:8265", description="the Ray cluster's dashboard, for the runner 'ray'"
    )
    ray_slots: int = Field(default=1, ge=1, description="jobs at once on the Ray cluster")
    ray_resource: str = Field(
        default="", description="the Ray resource that counts a node's memory in GB; empty: Ray's own 'memory'"
    )
    hf_jobs_image: str = Field(
        default="", description="the image that Hugging Face Jobs run (the Dockerfile's target 'cuda'), with its digest"
    )
    hf_jobs_namespace: str = Field(
        default="", description="user or organization that pays for Jobs; empty: the token's user"
    )
    hf_jobs_flavors: list[str] = Field(
        default=[], description="hardware that Jobs may use, as in 'l4x1'; empty: all that has a GPU"
    )
    hf_jobs_bucket: str = Field(
        default="", description="owner/name of the bucket for baselines and outputs of Jobs; empty: NAMESPACE/quantcard"
    )
    hf_jobs_slots: int = Field(default=1, ge=1, description="Jobs at once")
    hf_jobs_monthly_usd: float = Field(
        default=0, ge=0, description="USD that a month's Jobs may cost at the worst; 0: none is started"
    )
    hf_jobs_timeout_s: float = Field(
        default=7200, ge=60, description="seconds after which the Hub ends a Job; what it costs at the worst"
    )
    hf_jobs_poll_s: float = Field(default=10, gt=0, description="seconds between looks at a Job")
    hf_jobs_container_only: bool = Field(
        default=False, description="measure also where a Job's container allows no sandbox: then only it holds the file"
    )
    disk_budget_gb: float | None = Field(
        default=None,
        gt=0,
        description="GB that the data folder may take; default: what is free, less 2 GB or a fiftieth of the disk",
    )
    download_ahead: int = Field(
        default=1, ge=0, description="files of coming jobs that are fetched while others are measured; 0: none"
    )
    download_ahead_mb_per_s: float | None = Field(
        default=None, gt=0, description="MB a second that fetching ahead may take of the network; default: no limit"
    )
    lease_s: float = Field(default=120, gt=1, description="seconds after which a silent worker's job is taken over")
    poll_interval_s: float = Field(default=900, gt=0, description="seconds between polls ('serve')")
    sweep_interval_s: float = Field(
        default=86400, gt=0, description="seconds between reads of an owner's whole list, to see what is gone from it"
    )
    trusted_owners: list[str] = Field(
        default=[],
        description="owners whose F16/BF16 files may be the reference of other uploaders' variants",
    )
    proofs_per_cycle: int = Field(
        default=2,
        ge=0,
        description="turns at proving strangers' references in a cycle, up to 160 requests and 32 MiB each",
    )
    publish: bool = Field(default=True, description="the kill switch: false stops all writing to the Hub")
    dry_run: bool = Field(default=False, description="read and measure, but only say what would be written")
    pulls_open_per_owner: int = Field(default=5, ge=0, description="open pulls one owner may have from us")
    pulls_per_hour: int = Field(default=20, ge=0, description="new pulls an hour")
    pulls_check_s: float = Field(
        default=3600, ge=0, description="seconds between looks at an open pull's comments; a webhook makes it sooner"
    )
    quiet_hours: str = Field(
        default="",
        description="hours of the day, UTC, in which nothing is written to other people's repos, as in '22-7'",
    )
    leaderboard_url: str = Field(default="", description="the leaderboard's address, linked from cards")
    project_url: str = Field(default="", description="this project's address, linked from cards and pulls")
    templates_dir: Path | None = Field(
        default=None,
        description="folder of your own templates: OWNER/section.md.j2 takes the section's place in that owner's repos",
    )
    operator: str = Field(default="", description="who runs the bot and how to reach them, as its pulls say it")
    host: str = Field(default="127.0.0.1", description="address that 'serve' and 'leaderboard' listen on")
    port: int = Field(default=7860, ge=0, le=65535, description="port that 'serve' and 'leaderboard' listen on")
    public_url: str = Field(
        default="", description="the service's address as the Hub and browsers reach it, for the webhook"
    )
    webhook_secret: str = Field(default="", repr=False, description="the Hub's X-Webhook-Secret; empty: no webhook")
    requests_per_hour: int = Field(default=20, ge=0, description="benchmark requests taken from the page an hour")
    drain_s: float = Field(
        default=0,
        ge=0,
        description="seconds that a running job gets to end at SIGTERM ('serve'); 0: it is put back at once",
    )
    metrics: bool = Field(default=True, description="whether 'serve' answers at /metrics")
    log_format: Format = Field(default="text", description="how 'serve' logs: 'text', or 'json' (one object a line)")
    log_level: Level = Field(default="info", description="what 'serve' logs: 'debug', 'info', 'warning' or 'error'")
    backup_dir: Path | None = Field(
        default=None, description="folder into which 'serve' copies the database; default: no copies are made"
    )
    backup_interval_s: float = Field(default=86400, ge=1, description="seconds between copies of the database")
    backup_keep: int = Field(default=7, ge=1, description="copies of the database kept in backup_dir")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before the environment before quantcard.toml."""
        toml = TomlConfigSettingsSource(settings_cls, toml_file=os.environ.get("QUANTCARD_CONFIG", CONFIG_NAME))
        return init_settings, _Environment(settings_cls), toml

    @field_validator("chunks")
    @classmethod
    def _some_chunks(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("give at least 1, or -1 for all that the corpus holds")
        return value

    @field_validator("quiet_hours")
    @classmethod
    def _hours(cls, value: str) -> str:
        parse_hours(value)
        return value

    @property
    def data(self) -> Path:
        """The data folder, absolute."""
        return (self.data_dir or self.db.with_name(f"{self.db.stem}-data")).absolute()

    @property
    def disk_budget_bytes(self) -> int | None:
        """Bytes that the data folder may take; None: what is free, less a reserve."""
        return None if self.disk_budget_gb is None else int(self.disk_budget_gb * 1e9)

    @property
    def slots(self) -> int:
        """How many jobs run at once, on all runners together."""
        each = {"local": self.local_slots, "hf-jobs": self.hf_jobs_slots, "ray": self.ray_slots}
        return max(sum(each.get(name, 0) for name in set(self.runners)), 1)

    @property
    def machine(self) -> Machine:
        """How jobs may use this machine."""
        return Machine(n_threads=self.threads, n_gpu_layers=self.gpu_layers)

    @property
    def secrets(self) -> list[str]:
        """What must never be shown."""
        hidden = [name for name, field in type(self).model_fields.items() if not field.repr]
        return [str(value) for name in hidden if (value := getattr(self, name))]

    def known_protocols(self) -> dict[str, Known]:
        """The protocols that can be chosen by name: the built-in ones and the operator's own.

        Raises:
            SettingsError: the operator's file is not what it should be.
        """
        return known_protocols(self.protocols)

    def corpus_sources(self) -> dict[str, Source]:
        """Where each text that is known by its sha256 is taken from; the operator's own word goes before ours.

        Raises:
            SettingsError: the operator's file is not what it should be.
        """
        found = dict(CORPUS_SOURCES)
        for one in self.known_protocols().values():
            sha256 = one.protocol.corpus.sha256
            if one.source is not None and one.source != CORPUS_SOURCES.get(sha256):
                found[sha256] = one.source
        return found

    def protocol_in_force(self) -> Protocol:
        """The chosen protocol, or the variation of it that the other settings ask for, named by what they change.

        Raises:
            SettingsError: there is no such protocol, or what was set makes none.
            CorpusError: the corpus that was set is not there.
        """
        known = self.known_protocols()
        if self.protocol not in known:
            raise SettingsError(
                f"There is no protocol {self.protocol!r} (QUANTCARD_PROTOCOL), only {', '.join(known)}. "
                "See docs/settings.md."
            )
        corpus = None
        if self.corpus is not None:
            if not self.corpus.is_file():
                raise CorpusError(f"The corpus {self.corpus} (QUANTCARD_CORPUS) does not exist. Check the path.")
            corpus = Corpus(name=self.corpus.name, sha256=sha256_file(self.corpus))
        return varied(
            known[self.protocol].protocol,
            corpus=corpus,
            n_ctx=self.n_ctx,
            chunks=self.chunks,
            repetitions=self.repetitions,
        )


def load_settings(**flags: Any) -> Settings:
    """The settings in force; flags that are None count as not given.

    Raises:
        SettingsError: a value is not what it should be, or a name is unknown.
    """
    if "QUANTCARD_CONFIG" in os.environ and not Path(os.environ["QUANTCARD_CONFIG"]).is_file():
        raise SettingsError(f"{os.environ['QUANTCARD_CONFIG']} (QUANTCARD_CONFIG) does not exist.")
    try:
        found = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingsError(f"The setting {where!r} is not valid: {first['msg']}. See docs/settings.md.") from None
    except ValueError as error:
        raise SettingsError(f"{CONFIG_NAME} can't be read: {error}.") from None
    know(found.secrets)
    return found
