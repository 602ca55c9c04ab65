"""Judges the settings: names that nobody reads, and values that contradict each other. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from urllib.parse import urlsplit

from bot.doctor.finding import Finding, bad, clean, ok, some, warn
from bot.settings import Settings
from core.repo_names import is_repo_id

#: What is read from the environment besides settings.
_OTHERS = frozenset({"QUANTCARD_CONFIG", "QUANTCARD_WHEELS", "QUANTCARD_TASK"})
#: Settings whose name in the environment is another one.
_ALIASES = {"QUANTCARD_HF_TOKEN": "HF_TOKEN", "QUANTCARD_HF_ENDPOINT": "HF_ENDPOINT"}
_SECRETS = ("hf_token", "webhook_secret")
_SHORT_SECRET = 16
_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands around the settings.

    ``config_mode`` are the permission bits of the settings file where it holds secrets; ``protocol`` is why the
    protocol in force can't be used, or "".
    """

    environment: Mapping[str, str]
    n_cpus: int
    config: str = ""
    config_mode: int | None = None
    protocol: str = ""
    #: The setting that names the image of Hugging Face Jobs, as it is set.
    image: str = ""


def unread_names(environment: Collection[str], known: Collection[str]) -> list[tuple[str, str]]:
    """Names in the environment that look like settings of ours but are none, each with what was probably meant."""
    names = {f"QUANTCARD_{name.upper()}" for name in known} - set(_ALIASES)
    found = []
    for name in sorted(environment):
        if name.upper().startswith("QUANTCARD_") and name.upper() not in names | _OTHERS:
            close = get_close_matches(name.upper(), sorted(names), n=1, cutoff=0.75)
            found.append((name, _ALIASES.get(name.upper(), close[0] if close else "")))
    return found


def judge_settings(settings: Settings, around: Surroundings) -> list[Finding]:
    """What of the settings can't be meant so."""
    found: list[Finding] = []
    for name, meant in unread_names(around.environment, Settings.model_fields):
        fix = f"Write {meant}." if meant else "Take it away; docs/settings.md lists them all."
        found.append(warn(f"{clean(name, limit=80)} is set, but there is no such setting: it is not read.", fix))
    if around.protocol:
        found.append(bad(clean(around.protocol), "Set QUANTCARD_PROTOCOL and QUANTCARD_CORPUS to what is there."))
    found += _hub(settings, around.environment)
    found += _webhook(settings)
    if settings.publish and not settings.dry_run and settings.hf_token and not settings.operator:
        found.append(
            warn(
                "Pulls will not say who runs the bot (operator is empty); people want to know whom to ask.",
                "Set QUANTCARD_OPERATOR to a name and an address.",
            )
        )
    if settings.threads > around.n_cpus:
        found.append(
            warn(
                f"threads is {settings.threads}, but this process may use {around.n_cpus} CPUs: decoding gets slower.",
                "Set QUANTCARD_THREADS=0 for the physical cores.",
            )
        )
    if around.config_mode is not None and around.config_mode & 0o044:
        found.append(
            warn(
                f"{around.config} holds a secret and can be read by others (mode {around.config_mode & 0o777:o}).",
                f"chmod 600 {around.config}",
            )
        )
    if around.image and not _DIGEST.fullmatch(around.image):
        found.append(
            warn(
                f"The image for Hugging Face Jobs ({clean(around.image, limit=120)}) is not pinned by digest: whoever "
                "pushes to its tag decides what measures.",
                "Write it as NAME@sha256:DIGEST (docker images --digests, after docker push).",
            )
        )
    n = len(Settings.model_fields)
    return found or [ok(f"{n} settings are valid, none contradicts another; the protocol is {settings.protocol}.")]


def _hub(settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    found: list[Finding] = []
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        found.append(bad("HF_HUB_OFFLINE is set: the Hub is never asked.", "unset HF_HUB_OFFLINE"))
    try:
        address = urlsplit(settings.hf_endpoint)
        scheme, host = address.scheme, address.hostname or ""
    except ValueError:
        scheme, host = "", ""
    if scheme not in ("http", "https") or not host:
        found.append(
            bad(
                f"HF_ENDPOINT ({clean(settings.hf_endpoint, limit=120)}) is no address.",
                "unset HF_ENDPOINT, or set it to one such as https://huggingface.co",
            )
        )
    elif scheme == "http" and settings.hf_token and not _is_here(host):
        found.append(
            warn(
                f"The token is sent to {clean(host, limit=80)} in clear (HF_ENDPOINT is http).",
                "Use https, or a Hub on this machine.",
            )
        )
    if settings.dataset and not is_repo_id(settings.dataset):
        found.append(
            bad(
                f"dataset is {clean(settings.dataset, limit=120)!r}, which is no repo.",
                "Write OWNER/NAME, or leave it empty.",
            )
        )
    elif settings.dataset and not settings.hf_token and not settings.dry_run:
        found.append(
            warn(
                f"The dataset {settings.dataset} is never written: there is no token.", "Set HF_TOKEN, or dataset = ''."
            )
        )
    wrong = [name for name in settings.trusted_owners if not is_repo_id(f"{name}/x")]
    if wrong:
        found.append(warn(f"trusted_owners names what is no owner: {some(wrong)}.", "Write owners' names only."))
    return found


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _webhook(settings: Settings) -> list[Finding]:
    secret = settings.webhook_secret
    make = "export QUANTCARD_WEBHOOK_SECRET=$(openssl rand -hex 32)"
    found: list[Finding] = []
    if settings.public_url and not secret:
        found.append(
            warn(
                "public_url is set, but webhook_secret is empty: the Hub's webhooks are refused.",
                f"{make}, then 'quantcard webhooks sync'",
            )
        )
    if settings.public_url and urlsplit(settings.public_url).scheme not in ("http", "https"):
        found.append(
            bad(f"public_url ({clean(settings.public_url, limit=120)}) is no address.", "Begin it with https://")
        )
    if secret and not (secret.isascii() and secret.isprintable()):
        found.append(bad("webhook_secret is not printable ASCII, which the Hub can't send.", make))
    elif secret and len(secret) < _SHORT_SECRET:
        found.append(warn(f"webhook_secret has only {len(secret)} characters; it can be guessed.", make))
    return found
