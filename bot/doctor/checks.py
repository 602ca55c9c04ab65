"""The checks by name, and how they are run: one after another, each within its time, none able to end the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bot.doctor import config, database, llama, machine, probes, runners, sandbox, token
from bot.doctor.finding import Finding, State, bad, clean, ok, unknown, worst
from bot.doctor.here import Here
from bot.store.backup import newest_backup
from core.errors import QuantcardError, SettingsError


@dataclass(frozen=True, slots=True)
class Check:
    """One check: ``limit_s`` is when it is given up."""

    name: str
    run: Callable[[Here], list[Finding]]
    limit_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found, and how long it took."""

    name: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def state(self) -> State:
        """The worst of what was found."""
        return worst(one.state for one in self.findings)


def _settings(here: Here) -> list[Finding]:
    try:
        return config.judge_settings(here.settings, here.surroundings)
    except SettingsError as error:
        return [bad(clean(str(error)), "Put it right; docs/settings.md lists all settings.")]


def _gpu(here: Here) -> list[Finding]:
    return llama.judge_gpu(here.build, gpu_layers=here.settings.gpu_layers)


def _decode(here: Here) -> list[Finding]:
    ended = llama.probe_decode(gpu_layers=0)
    found = llama.judge_decode(ended, here.build, here.cpu)
    if here.build is not None and any("GPU" in str(one.get("type", "")) for one in here.build.devices):
        ended = llama.probe_decode(gpu_layers=-1)
        found += llama.judge_decode(ended, here.build, here.cpu, where="the GPU")
    return found


def _sandbox(here: Here) -> list[Finding]:
    facts = here.sandbox
    try:
        accepted = here.unsafe
    except SettingsError:
        accepted = False
    return sandbox.judge_sandbox(facts, accepted=accepted)


def _token(here: Here) -> list[Finding]:
    present = bool(here.settings.hf_token)
    return token.judge_token(present=present, answer=here.hub, needs=here.needs, now=here.now)


def _clock(here: Here) -> list[Finding]:
    try:
        answer, newest = here.hub, here.database.newest
    except SettingsError as error:
        return [unknown(f"The Hub is not known: {clean(str(error))}")]
    return token.judge_clock(answer, newest=newest, now=here.now, drift=here.drift)


def _database(here: Here) -> list[Finding]:
    path = here.settings.db.absolute()
    kind = probes.mount_kind(path.parent)
    found = database.judge_database(path, here.database, kind=kind, network=probes.is_network(kind))
    if (folder := here.settings.backup_dir) is not None and here.database.exists:
        newest = newest_backup(folder, path.stem)
        age = None if newest is None else here.now - newest
        found += database.judge_backups(folder, age, interval_s=here.settings.backup_interval_s)
    return found


def _disk(here: Here) -> list[Finding]:
    data, temp = here.folders()
    budget = here.settings.disk_budget_bytes
    used = probes.folder_size(here.settings.data) if budget is not None else None
    return machine.judge_disk(data, temp, budget=budget, used=used)


def _leftovers(here: Here) -> list[Finding]:
    facts = here.database
    late = here.now - facts.oldest_lease if facts.oldest_lease is not None else None
    return machine.judge_leftovers(
        here.temporary(), here.partial(), probes.orphans(), overdue=facts.overdue, late=late,
        lease_s=here.settings.lease_s,
    )  # fmt: skip


CHECKS: tuple[Check, ...] = (
    Check("settings", _settings),
    Check("python", lambda here: machine.judge_packages(here.packages)),
    Check("llama.cpp", lambda here: llama.judge_build(here.asked_build, here.cpu), limit_s=45),
    Check("gpu", _gpu, limit_s=45),
    Check("decode", _decode, limit_s=240),
    Check("sandbox", _sandbox, limit_s=150),
    Check("hub", lambda here: token.judge_hub(here.hub)),
    Check("token", _token),
    Check("clock", _clock),
    Check("database", _database, limit_s=60),
    Check("disk", _disk),
    Check("memory", lambda _: machine.judge_memory(probes.look_at_memory())),
    Check("files", lambda _: machine.judge_open_files(*probes.file_limits())),
    Check("port", lambda here: machine.judge_port(probes.look_at_port(here.settings.host, here.settings.port))),
    Check("leftovers", _leftovers),
    Check("runners", lambda here: runners.judge_runners(here, here.runners), limit_s=60),
)


def run_checks(here: Here, checks: Sequence[Check] = CHECKS) -> Iterator[Checked]:
    """Run checks in their order and give each as it is done."""
    for check in checks:
        started = time.monotonic()
        findings = _within(check, here)
        hide = here.mask
        masked = tuple(Finding(one.state, hide(one.found), hide(one.fix)) for one in findings)
        yield Checked(check.name, masked, time.monotonic() - started)


def _within(check: Check, here: Here) -> list[Finding]:
    """A check's findings; where it fails or takes too long, that it could not be found out.

    It runs in a thread of its own, which is left behind where it hangs (a dead network file system).
    """
    done: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()

    def work() -> None:
        try:
            found = check.run(here) or [ok("Nothing to say.")]
        except QuantcardError as error:
            found = [unknown(f"It could not be looked at: {clean(str(error))}")]
        except Exception as error:
            found = [unknown(f"It could not be looked at ({type(error).__name__}: {clean(str(error), limit=200)}).")]
        done.put(found)

    threading.Thread(target=work, daemon=True, name=f"doctor-{check.name}").start()
    try:
        return done.get(timeout=check.limit_s)
    except queue.Empty:
        return [
            unknown(f"It was given up after {check.limit_s:.0f} s.", "Something hangs: a disk, a driver or a network.")
        ]
