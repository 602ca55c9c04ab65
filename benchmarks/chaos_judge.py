"""Judges what a chaos run left: by SQL, the file system, /proc and the Hub's own answers, by none of the bot's code."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: As SQL has it.
ENDED = "('done', 'failed', 'cancelled', 'dead')"
#: What differs from run to run, and from copy to copy of one file.
_OF_THE_RUN = ("timings", "tokens_path", "tokens_sha256")
#: Tries that a job has (docs/queue.md): its own, and lost machines.
_OWN_TRIES, _LOST_TRIES = 3, 8


@dataclass
class Verdict:
    """What was found; every list but ``given_up`` is empty where all is well."""

    jobs: int = 0
    states: dict[str, int] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)
    given_up_wrongly: list[str] = field(default_factory=list)
    not_once: list[str] = field(default_factory=list)
    measurements: list[str] = field(default_factory=list)
    #: By the file's type, the figures that its copies were given: one text where they are equal.
    figures: dict[str, Counter[str]] = field(default_factory=dict)
    compared: int = 0
    processes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    n_files: int = 0
    database: list[str] = field(default_factory=list)
    pulls: list[str] = field(default_factory=list)
    #: How many jobs were begun how often.
    runs: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    died: int = 0
    #: By the service's process number, when it first took a job (seconds since the epoch).
    first_lease: dict[int, float] = field(default_factory=dict)


def judge(folder: Path, endpoint: str, token: str, repos: list[str], bot: str) -> Verdict:
    """Look at everything once the service has ended."""
    found = Verdict()
    with closing(sqlite3.connect(folder / "bot.db")) as db:
        db.row_factory = sqlite3.Row
        _judge_jobs(db, found)
        _judge_measurements(db, folder, found)
        _judge_history(db, found)
        checks = [row[0] for row in db.execute("PRAGMA integrity_check")]
        found.database = [one for one in checks if one != "ok"]
        found.database += [f"{row[0]} {row[1]}" for row in db.execute("PRAGMA foreign_key_check")]
    found.processes = [f"{pid} {program(pid)}" for pid in started_below(folder)]
    found.files = [*_left(folder)]
    found.n_files = sum(1 for path in folder.rglob("*") if path.is_file() and path.parts[-2] != "hub")
    for repo in repos:
        numbers = _pulls_of(endpoint, token, repo, bot)
        if len(numbers) != 1:
            found.pulls.append(f"{repo}: {numbers}")
    return found


def difference(calm: Verdict, other: Verdict) -> list[str]:
    """Types whose figures are not, for every copy, those of the undisturbed run."""
    return [
        f"{label}: {len(given)} different ones"
        for label, given in other.figures.items()
        if list(given) != list(calm.figures.get(label, {}))
    ]


def _judge_jobs(db: sqlite3.Connection, found: Verdict) -> None:
    rows = db.execute(
        "SELECT j.*, (SELECT COUNT(*) FROM job_events e WHERE e.job_id = j.id AND e.state = j.state) AS ends, "
        f"(SELECT COUNT(*) FROM job_events e WHERE e.job_id = j.id AND e.state IN {ENDED}) AS all_ends FROM jobs j"
    ).fetchall()
    found.jobs = len(rows)
    found.states = dict(Counter(row["state"] for row in rows))
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        name = f"job {row['id']} ({row['kind']})"
        ended = row["state"] in ("done", "failed", "cancelled", "dead")
        if not ended or row["ends"] != 1 or row["all_ends"] != 1 or row["lease_owner"]:
            found.not_once.append(f"{name}: {row['state']}, {row['ends']} and {row['all_ends']} events")
        if row["state"] != "done":
            (found.given_up if _used_up(row, by_id) else found.given_up_wrongly).append(f"{name}: {row['error']}")


def _used_up(row: sqlite3.Row, by_id: dict[int, sqlite3.Row]) -> bool:
    """Whether a job was killed as often as it may be, or waited for one that was."""
    if row["state"] != "dead":
        return False
    if row["error_type"] == "Dependency":
        return _used_up(by_id[row["depends_on"]], by_id)
    died = row["error_type"] in ("MeasurementDiedError", "JobProtocolError") and row["attempts"] == _OWN_TRIES
    return died or (row["error_type"] == "LostWorker" and row["lost"] == _LOST_TRIES)


def _judge_measurements(db: sqlite3.Connection, folder: Path, found: Verdict) -> None:
    """One row for each job that is done, none for others; what it names lies there; figures by type."""
    figures: dict[str, Counter[str]] = defaultdict(Counter)
    stored = Counter((row[0], row[1]) for row in db.execute("SELECT variant_key, kind FROM measurements"))
    wanted = Counter(
        (row[0], row[1])
        for row in db.execute(
            "SELECT v.key, j.kind FROM jobs j JOIN variants v ON v.id = j.variant_id "
            "WHERE j.state = 'done' AND j.kind <> 'baseline'"
        )
    )
    for key in {*stored, *wanted}:
        if stored[key] != wanted[key]:
            found.measurements.append(f"{key[1]} of {key[0][:12]}: {stored[key]} measurements, {wanted[key]} done")
    labels = {row[0]: row[1] for row in db.execute("SELECT key, name FROM variants")}
    for row in db.execute("SELECT variant_key, result FROM measurements WHERE kind = 'quality'"):
        result: dict[str, Any] = json.loads(row[1])
        sidecar = folder / "data" / "tokens" / str(result["tokens_path"])
        if not sidecar.is_file() or _sha256(sidecar) != result["tokens_sha256"]:
            found.measurements.append(f"{sidecar.name} is not the one that was measured")
        label = labels[row[0]].removesuffix(".gguf").rsplit("-", 1)[-1]
        kept = {name: value for name, value in result.items() if name not in _OF_THE_RUN}
        figures[label][json.dumps(kept, sort_keys=True)] += 1
    baselines = db.execute("SELECT result FROM baselines").fetchall()
    if len(baselines) != 1:
        found.measurements.append(f"{len(baselines)} baselines")
    for row in baselines:
        result = json.loads(row[0])
        path = Path(result["path"])
        if not path.is_file() or _sha256(path) != result["sha256"]:
            found.measurements.append(f"{path.name} is not the one that was recorded")
        figures["baseline"][str(result["sha256"])] += 1
    found.figures = dict(figures)
    found.compared = sum(sum(given.values()) for given in figures.values())


def _judge_history(db: sqlite3.Connection, found: Verdict) -> None:
    begun = Counter(row[0] for row in db.execute("SELECT job_id FROM job_events WHERE state = 'leased'"))
    found.runs = Counter(begun.values())
    found.lost = db.execute("SELECT COUNT(*) FROM job_events WHERE state = 'lost'").fetchone()[0]
    found.died = db.execute(
        "SELECT COUNT(*) FROM job_events WHERE reason LIKE 'The measurement died%' AND state <> 'done'"
    ).fetchone()[0]
    for at, worker in db.execute("SELECT at, reason FROM job_events WHERE state = 'leased' ORDER BY id DESC"):
        # HOST:NAMESPACE:PID:RANDOM
        found.first_lease[int(worker.split(":")[-2])] = at


def _left(folder: Path) -> Iterator[str]:
    """Files and folders that nothing needs any more."""
    data = folder / "data"
    for place in (folder / "tmp", data / "work", data / "models"):
        if place.is_dir():
            # Gradio makes itself a folder for uploads; there are none.
            yield from (f"{place.name}/{path.name}" for path in place.iterdir() if not _is_gradios(path))
    for root, folders, names in os.walk(data):
        for name in [*folders, *names]:
            if name.startswith(".") or name.endswith((".part", ".lock", ".tmp")):
                yield f"{Path(root).name}/{name}"
    known = {"bot.db", "bot.db.lock", "bot.db-turn", "bot.db-wal", "bot.db-shm", "serve.log", "protocols.toml"}
    yield from (path.name for path in folder.iterdir() if path.is_file() and path.name not in known)


def _is_gradios(path: Path) -> bool:
    return path.name == "gradio" and not any(one.is_file() for one in path.rglob("*"))


def _pulls_of(endpoint: str, token: str, repo: str, bot: str) -> list[int]:
    """The numbers of a repo's pulls by the bot, as the Hub tells them."""
    request = urllib.request.Request(
        f"{endpoint}/api/models/{repo}/discussions", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        told = json.load(answer)["discussions"]
    return [one["num"] for one in told if one["isPullRequest"] and one["author"]["name"] == bot]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def below(pid: int) -> set[int]:
    """Every process below this one."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found |= {child} | below(child)
    return found


def started_below(folder: Path) -> set[int]:
    """Processes that name this folder in their environment, command line, working folder or open files; not us."""
    found, mark = set(), str(folder).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        told = []
        for name in ("environ", "cmdline"):
            with suppress(OSError):
                told.append((entry / name).read_bytes())
        with suppress(OSError):
            told += [bytes(one.readlink()) for one in (entry / "cwd", *(entry / "fd").iterdir())]
        if any(mark in one for one in told) and lives(int(entry.name)):
            found.add(int(entry.name))
    return found


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie, which holds nothing but its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def program(pid: int) -> str:
    """What a process is, in a word."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        name = Path(words[0]).name
        if name == "bwrap":
            return "bubblewrap"
        return "measuring process" if "jobs.run" in words else name or "zombie"
    return "gone"
