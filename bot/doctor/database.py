"""Judges the database. Pure."""

from __future__ import annotations

from pathlib import Path

from bot.doctor.finding import Finding, bad, clean, ok, some, unknown, warn
from bot.store.health import DatabaseFacts
from core.format import size

_WAL_WARN = 256 << 20


def judge_database(path: Path, facts: DatabaseFacts, *, kind: str = "", network: bool = False) -> list[Finding]:
    """Whether the database is whole, up to date and writable.

    Args:
        kind: the type of the file system that holds it; ``network``: another machine does.
    """
    restore = "Stop the bot and restore a copy (quantcard backup), or have SQLite save what it can: "
    restore += f"sqlite3 {path} .recover | sqlite3 {path}.new"
    if not facts.exists:
        return [ok(f"There is no database at {path} yet; the first 'quantcard follow' makes it.")]
    if facts.error:
        return [bad(f"The database {path} can't be read: {clean(facts.error)}.", restore)]
    found: list[Finding] = []
    if facts.problems:
        found.append(bad(f"The database {path} is damaged: {some(facts.problems, most=3)}.", restore))
    if facts.foreign:
        found.append(bad(f"{facts.foreign} rows of {path} refer to rows that are gone.", restore))
    if facts.newer:
        found.append(bad(f"{path} was made by a newer quantcard ({some(facts.newer)}).", "Update quantcard."))
    elif facts.missing:
        found.append(
            warn(
                f"{len(facts.missing)} migrations are to be applied ({some(facts.missing)}).",
                "Take a backup; the next command that uses the database applies them.",
            )
        )
    if facts.locked:
        found.append(
            warn(
                f"The database was held by somebody else for 2 seconds: {clean(facts.locked)}.",
                f"See who has it open (fuser -v {path}); no transaction of ours takes that long.",
            )
        )
    if facts.read_only:
        found.append(
            bad(
                f"The database {path} can't be written: {clean(facts.read_only)}.",
                f"Make it and its folder writable for this user: chown $(id -u) {path}* {path.parent}",
            )
        )
    if network:
        found.append(
            bad(
                f"The database is on a network file system ({clean(kind, limit=30)}), where SQLite's locks "
                "and shared memory do not hold.",
                "Move it to a local disk and set QUANTCARD_DB.",
            )
        )
    if facts.journal_mode not in ("wal", "") and not facts.locked:
        found.append(
            warn(
                f"The journal mode is {facts.journal_mode}, not WAL: readers and the writer block each other.",
                "Any command that opens the database sets it; if it stays, the disk can't.",
            )
        )
    if facts.wal > _WAL_WARN:
        found.append(
            warn(
                f"Its write-ahead log has grown to {size(facts.wal)}: a reader holds it open.",
                "End what reads the database for hours (fuser -v FILE).",
            )
        )
    if not facts.checked and not facts.locked and not facts.problems:
        found.append(
            unknown(
                f"{size(facts.size)} could not be checked to the end in {facts.took:.0f} s.",
                f"With the bot stopped: sqlite3 {path} 'PRAGMA integrity_check'",
            )
        )
    if found:
        return found
    how = "every page, index and foreign key" if facts.thorough else "every page and foreign key"
    return [
        ok(
            f"{path} ({size(facts.size)}, {facts.n_jobs:,} jobs) is whole: {how} was checked in {facts.took:.1f} s; "
            "its migrations are all applied, it can be written."
        )
    ]


def judge_backups(folder: Path, age: float | None, *, interval_s: float) -> list[Finding]:
    """Whether copies are made as often as the settings say.

    Args:
        age: seconds since the newest was made; None: there is none.
    """
    fix = "See that 'quantcard serve' runs and may write there, or make one now: quantcard backup"
    if age is None:
        return [warn(f"There is no copy of the database in {folder} yet.", fix)]
    if age > 2 * interval_s:
        return [
            warn(
                f"The newest copy of the database in {folder} is {age / 3600:.0f} hours old; one is to be made every "
                f"{interval_s / 3600:.0f} hours.",
                fix,
            )
        ]
    return [ok(f"The newest copy of the database in {folder} is {age / 3600:.1f} hours old.")]
