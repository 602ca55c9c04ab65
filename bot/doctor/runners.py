"""Whether each configured runner is ready. One with a look of its own adds a function and a line in :data:`CHECKS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, build_opener

from bot.doctor.finding import Finding, bad, clean, ok, some, unknown, warn
from bot.doctor.sandbox import judge_sandbox
from bot.hub.client import Hub
from bot.hub.jobs_api import JobsApi
from bot.queue.runners.hf_jobs_plan import usable
from bot.queue.runners.registry import RUNNERS, runners_of
from core.errors import QuantcardError, SettingsError
from core.format import size

if TYPE_CHECKING:
    from bot.doctor.here import Here

#: Looks whether a runner could take a job now; may raise whatever it likes, and should ask nobody for over 10 s.
RunnerCheck = Callable[["Here"], list[Finding]]
_TIMEOUT_S = 5.0


def _local(here: Here) -> list[Finding]:
    """This machine: its sandbox."""
    judged = judge_sandbox(here.sandbox, accepted=here.unsafe)
    if all(one.state in ("ok", "warn") for one in judged):
        return [ok(f"local: ready; the sandbox is {here.sandbox.level!r}.")]
    return [Finding(one.state, f"local: {one.found}", one.fix) for one in judged]


def _ray(here: Here) -> list[Finding]:
    """The cluster's dashboard, which takes jobs."""
    address = here.settings.ray_address.rstrip("/")
    start = "Start the cluster (ray start --head), or set QUANTCARD_RAY_ADDRESS to its dashboard (http://HOST:8265)."
    try:
        # No proxy: a cluster is near.
        with build_opener(ProxyHandler({})).open(f"{address}/api/version", timeout=_TIMEOUT_S) as response:
            told = json.loads(response.read(1 << 16))
        theirs = clean(str(told["ray_version"]), limit=40)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [bad(f"ray: {clean(address, limit=120)} is no Ray dashboard that answers ({clean(str(error))}).", start)]
    made = _made(here, "ray")
    return made if made[0].state != "ok" else [ok(f"ray: Ray {theirs} answers at {clean(address, limit=120)}.")]


def _made(here: Here, name: str) -> list[Finding]:
    """Whether the runner can be made as it is set: what every runner is asked."""
    settings = here.settings.model_copy(update={"runners": [name]})
    try:
        runner = runners_of(settings, Hub(endpoint=settings.hf_endpoint, token=settings.hf_token))[0]
    except SettingsError as error:
        return [bad(f"{name}: {clean(str(error))}", "See docs/runners.md.")]
    except ModuleNotFoundError as error:
        extra = "quantcard[ray]" if name == "ray" else "quantcard"
        return [bad(f"{name}: the package {error.name} is missing.", f"pip install '{extra}'")]
    has = runner.capacity()
    memory = "memory not known" if has.memory is None else f"{size(has.memory)} of memory"
    gpus = f", {len(has.vram)} GPUs of {size(min(has.vram))} or more" if has.vram else ""
    return [ok(f"{name}: takes {runner.slots} jobs at once on machines of up to {memory}{gpus}.")]


def _hf_jobs(here: Here) -> list[Finding]:
    """The image, the hardware with its prices, the bucket, the money."""
    settings = here.settings
    made = _made(here, "hf-jobs")
    if made[0].state != "ok":
        return made
    api = JobsApi(
        endpoint=settings.hf_endpoint,
        token=settings.hf_token,
        namespace=settings.hf_jobs_namespace,
        bucket=settings.hf_jobs_bucket,
    )
    flavors = usable(api.hardware(), settings.hf_jobs_flavors)
    if not flavors:
        asked = f" of {some(settings.hf_jobs_flavors)}" if settings.hf_jobs_flavors else ""
        return [bad(f"hf-jobs: the Hub offers none{asked} of the hardware that may be used.",
                    "Correct QUANTCARD_HF_JOBS_FLAVORS ('hf jobs hardware' lists them).")]  # fmt: skip
    n_files = len(api.files("jobs/"))
    prices = sorted(60 * one.usd_per_minute for one in flavors)
    worst = prices[-1] * settings.hf_jobs_timeout_s / 3600
    found = f"hf-jobs: {len(flavors)} kinds of hardware at {prices[0]:.2f} to {prices[-1]:.2f} USD an hour; "
    found += f"the bucket {clean(api.bucket, limit=120)} holds {n_files} files of Jobs"
    if settings.hf_jobs_monthly_usd == 0:
        return [warn(f"{found}. No Job is ever started: the month's limit is 0 USD.",
                     "Set QUANTCARD_HF_JOBS_MONTHLY_USD to what a month may cost.")]  # fmt: skip
    if settings.hf_jobs_monthly_usd < prices[0] * settings.hf_jobs_timeout_s / 3600:
        return [warn(f"{found}. The month's limit of {settings.hf_jobs_monthly_usd:.2f} USD is less than one Job may "
                     f"cost ({worst:.2f} USD at the worst): none is ever started.",
                     "Raise QUANTCARD_HF_JOBS_MONTHLY_USD, or lower QUANTCARD_HF_JOBS_TIMEOUT_S.")]  # fmt: skip
    return [ok(f"{found}; a Job costs {worst:.2f} USD at the worst, a month {settings.hf_jobs_monthly_usd:.2f}.")]


#: By the name that stands in the settings; the others are only asked whether they can be made.
CHECKS: dict[str, RunnerCheck] = {"local": _local, "ray": _ray, "hf-jobs": _hf_jobs}


def judge_runners(here: Here, configured: list[str], checks: Mapping[str, RunnerCheck] | None = None) -> list[Finding]:
    """What each configured runner lacks; one that can't be looked at does not hide the others."""
    own = CHECKS if checks is None else checks
    found: list[Finding] = []
    for name in dict.fromkeys(configured):
        if name not in own and name not in RUNNERS:
            found.append(bad(f"There is no runner {clean(name, limit=60)!r}, only {some(RUNNERS)}.",
                             "Correct QUANTCARD_RUNNERS; see docs/runners.md."))  # fmt: skip
            continue
        try:
            found += own[name](here) if name in own else _made(here, name)
        except QuantcardError as error:
            found.append(warn(f"{name}: not ready: {clean(str(error))}", "See docs/runners.md."))
        except Exception as error:
            said = clean(f"{type(error).__name__}: {error}", limit=200)
            found.append(unknown(f"{name}: it could not be looked at ({said})."))
    return found or [bad("No runner is configured: nothing is ever measured.", "Set QUANTCARD_RUNNERS='[\"local\"]'.")]
