"""Baselines, measurements, pulls, requests: what came of the jobs and what was told to whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from bot.store.db import immediate
from core.contract import BaselineResult, QualityResult, SpeedResult, result_adapter

#: Seconds in which what a process that was killed had sent last may still arrive.
_ON_ITS_WAY_S = 10.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """A stored measurement of one variant under one protocol."""

    id: int
    variant_key: str
    kind: str
    reference_key: str | None
    result: QualityResult | SpeedResult
    created_at: float


@dataclass(frozen=True, slots=True)
class StoredPull:
    """One of our pulls as last seen: open, draft, closed, merged or replaced.

    ``author``: the account of ours that opened it, where the Hub said so.
    """

    repo_id: str
    num: int
    key: str
    status: str
    url: str | None
    created_at: float
    author: str | None = None


class Results:
    """Tables baselines, measurements, pulls, requests, keyed."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def save_baseline(
        self, reference_key: str, protocol_fingerprint: str, result: BaselineResult, *, now: float
    ) -> None:
        """Remember a recorded baseline; a new recording replaces the old one."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT OR REPLACE INTO baselines (reference_key, protocol_fingerprint, path, result, created_at) "
                "VALUES (?, ?, ?, ?, ?)",
                (reference_key, protocol_fingerprint, result.path, result.model_dump_json(), now),
            )

    def baseline(self, reference_key: str, protocol_fingerprint: str) -> BaselineResult | None:
        """The baseline of a reference under a protocol, or None."""
        for row in self._db.query(
            "SELECT result FROM baselines WHERE reference_key = ? AND protocol_fingerprint = ?",
            (reference_key, protocol_fingerprint),
        ):
            return BaselineResult.model_validate_json(row["result"])
        return None

    def save_measurement(
        self,
        variant_key: str,
        protocol_fingerprint: str,
        result: QualityResult | SpeedResult,
        *,
        reference_key: str | None,
        job_id: int | None,
        now: float,
    ) -> None:
        """Add a measurement; older ones stay, the newest counts."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT INTO measurements (variant_key, protocol_fingerprint, kind, reference_key, "
                "environment_fingerprint, result, job_id, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    variant_key,
                    protocol_fingerprint,
                    result.kind,
                    reference_key,
                    result.environment.fingerprint,
                    result.model_dump_json(),
                    job_id,
                    now,
                ),
            )

    def measurements(
        self, variant_key: str, protocol_fingerprint: str, *, reference_key: str | None = None
    ) -> dict[str, Measurement]:
        """The newest measurement of each kind, by kind; with ``reference_key``, quality against that one only.

        An imported one counts only where nothing was measured here.
        """
        rows = self._db.query(
            "SELECT * FROM measurements WHERE variant_key = ? AND protocol_fingerprint = ? ORDER BY id",
            (variant_key, protocol_fingerprint),
        )
        found: dict[str, Measurement] = {}
        for row in rows:
            if row["kind"] == "quality" and reference_key not in (None, row["reference_key"]):
                continue
            one = Measurement(
                row["id"],
                row["variant_key"],
                row["kind"],
                row["reference_key"],
                result_adapter.validate_json(row["result"]),
                row["created_at"],
            )
            before = found.get(one.kind)
            if before is None or one.result.imported is None or before.result.imported is not None:
                found[one.kind] = one
        return found

    def klds(self, reference_key: str, protocol_fingerprint: str, *, but: str) -> list[tuple[float, float]]:
        """(bits per weight, mean KLD in nats) of what was measured here against a reference, the newest of each file.

        Args:
            but: a file that is left out, as the reference itself is.
        """
        rows = self._db.query(
            "SELECT json_extract(m.result, '$.kld.mean') AS kld, (SELECT json_extract(v.inspection, '$.bpw') "
            "FROM variants v WHERE v.key = m.variant_key AND v.inspection IS NOT NULL LIMIT 1) AS bpw, MAX(m.id) "
            "FROM measurements m WHERE m.kind = 'quality' AND m.reference_key = ? AND m.protocol_fingerprint = ? "
            "AND m.variant_key NOT IN (?, m.reference_key) AND json_extract(m.result, '$.imported') IS NULL "
            "GROUP BY m.variant_key",
            (reference_key, protocol_fingerprint, but),
        )
        return [(row["bpw"], row["kld"]) for row in rows if row["bpw"] is not None and row["kld"] is not None]

    def save_import(
        self,
        variant_key: str,
        protocol_fingerprint: str,
        result: QualityResult | SpeedResult,
        *,
        reference_key: str | None,
        now: float,
    ) -> Measurement | None:
        """Add an imported measurement; if one was measured here, or this very one is there, return that instead."""
        with immediate(self._db):
            known = self.measurements(variant_key, protocol_fingerprint, reference_key=reference_key).get(result.kind)
            if known and known.result.imported in (None, result.imported):
                return known
            self.save_measurement(
                variant_key, protocol_fingerprint, result, reference_key=reference_key, job_id=None, now=now
            )
        return None

    def save_pull(
        self,
        repo_id: str,
        num: int,
        *,
        key: str,
        status: str,
        url: str | None,
        author: str | None = None,
        now: float,
    ) -> None:
        """Remember a pull or its new key and status; ``gone``: there is no pull of ours under that number any more."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT INTO pulls (repo_id, num, key, status, url, author, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (repo_id, num) DO UPDATE SET key = excluded.key, status = excluded.status, "
                "url = COALESCE(excluded.url, pulls.url), author = COALESCE(excluded.author, pulls.author), "
                "created_at = CASE pulls.status WHEN 'gone' THEN excluded.created_at ELSE pulls.created_at END, "
                "updated_at = excluded.updated_at",
                (repo_id, num, key, status, url, author, now, now),
            )

    def pulls(self, repo_id: str | None = None) -> list[StoredPull]:
        """Our pulls in one repo or in all, by repo and number, without those that are gone."""
        where, args = ("AND repo_id = ?", (repo_id,)) if repo_id else ("", ())
        rows = self._db.query(f"SELECT * FROM pulls WHERE status <> 'gone' {where} ORDER BY repo_id, num", args)
        names = ("repo_id", "num", "key", "status", "url", "created_at", "author")
        return [StoredPull(*(row[name] for name in names)) for row in rows]

    def accounts(self) -> set[str]:
        """The accounts under which our pulls were opened."""
        return {row["author"] for row in self._db.query("SELECT DISTINCT author FROM pulls WHERE author IS NOT NULL")}

    def add_request(self, repo_id: str, person: str | None, *, now: float) -> bool:
        """Note that somebody asked for a repo; False if the same repo is already asked for and waiting."""
        with immediate(self._db):
            if any(True for _ in self._db.query(
                "SELECT 1 FROM requests WHERE repo_id = ? AND state = 'open'", (repo_id,)
            )):  # fmt: skip
                return False
            self._db.conn.execute(
                "INSERT INTO requests (repo_id, person, state, created_at) VALUES (?, ?, 'open', ?)",
                (repo_id, person, now),
            )
            return True

    def requests(self, *, state: str | None = None) -> list[dict[str, Any]]:
        """Requests in one state or all: id, repo_id, person, state, note, created_at."""
        where, args = ("WHERE state = ?", (state,)) if state else ("", ())
        return list(self._db.query(f"SELECT * FROM requests {where} ORDER BY id", args))

    def end_request(self, request_id: int, *, state: str, note: str | None) -> None:
        """Answer a request: taken, or refused with a note."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE requests SET state = ?, note = ? WHERE id = ?", (state, note, request_id))

    def get(self, name: str) -> str | None:
        """A small remembered value, or None."""
        for row in self._db.query("SELECT value FROM keyed WHERE name = ?", (name,)):
            return str(row["value"])
        return None

    def take_lease(
        self,
        name: str,
        owner: str,
        *,
        now: float,
        lease: float,
        alive: Callable[[str], bool | None] = lambda _: None,
    ) -> bool:
        """Take or prolong a named lease that one process at a time may hold; False while another one holds it.

        Args:
            alive: whether a holder is known to live (True) or to have ended (False: its lease ends with it).
        """
        with immediate(self._db):
            held = json.loads(self.get(f"lease:{name}") or "null")
            if held and held["owner"] != owner and held["until"] > now:
                silent = now - (held["until"] - lease)
                if silent < _ON_ITS_WAY_S or alive(held["owner"]) is not False:
                    return False
            self.put(f"lease:{name}", json.dumps({"owner": owner, "until": now + lease}))
            return True

    def keep_lease(self, name: str, owner: str, *, now: float, lease: float) -> bool:
        """Prolong a named lease that is still ours, run out or not; False where somebody had it in between."""
        with immediate(self._db):
            held = json.loads(self.get(f"lease:{name}") or "null")
            if not held or held["owner"] != owner:
                return False
            self.put(f"lease:{name}", json.dumps({"owner": owner, "until": now + lease}))
            return True

    def drop_lease(self, name: str, owner: str) -> None:
        """Give a named lease back, if it is still ours."""
        with immediate(self._db):
            held = json.loads(self.get(f"lease:{name}") or "null")
            if held and held["owner"] == owner:
                self._db.conn.execute("DELETE FROM keyed WHERE name = ?", (f"lease:{name}",))

    def put(self, name: str, value: str) -> None:
        """Remember a small value."""
        with immediate(self._db):
            self._db.conn.execute("INSERT OR REPLACE INTO keyed (name, value) VALUES (?, ?)", (name, value))
