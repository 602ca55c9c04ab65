"""Where jobs stand in the queue: position, when they will be done, what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from bot.store.changes import ENDED, TAKEN, marks
from bot.store.jobs import Job, job_of
from core.eta import Pace, Work, eta

#: Jobs measured last, of each kind, from which a pace is taken.
_LATEST = 100
#: Values in one question to the database.
_AT_ONCE = 500
_KINDS = ("baseline", "quality", "speed")


@dataclass(frozen=True, slots=True)
class Place:
    """A waiting job's place: 1 is next. ``eta_s``: seconds until it is done; None: nothing was measured yet."""

    position: int
    eta_s: float | None


class Standing:
    """Reads of the queue as a whole."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def paces(self) -> dict[str, Pace]:
        """How long the last jobs of each kind took, where any were measured."""
        found = {}
        for kind in _KINDS:
            n, size, seconds = self._db.conn.execute(
                "SELECT COUNT(*), SUM(size_bytes), SUM(seconds) FROM (SELECT size_bytes, seconds FROM jobs "
                "WHERE kind = ? AND seconds IS NOT NULL ORDER BY updated_at DESC LIMIT ?)",
                (kind, _LATEST),
            ).fetchone()
            if n:
                found[kind] = Pace(n, size, seconds)
        return found

    def places(self, jobs: Sequence[Job], *, now: float, slots: int) -> dict[int, Place]:
        """The places of waiting jobs, by id; others are left out.

        Args:
            jobs: waiting ones in the queue's order without gaps between them (others may stand anywhere).
            slots: how many jobs run at once.
        """
        waiting = [job for job in jobs if job.state == "todo"]
        if not waiting:
            return {}
        paces, found = self.paces(), {}
        ahead, running = self._ahead_of(waiting[0]), self.remaining(now=now, paces=paces)
        for job in waiting:
            own = Work(1, job.size_bytes)
            wanted = eta(ahead=ahead, own={job.kind: own}, running=running, slots=slots, paces=paces)
            if wanted is not None:
                # It is put off until then.
                wanted = max(wanted, job.not_before - now)
            found[job.id] = Place(sum(work.n for work in ahead.values()) + 1, wanted)
            before = ahead.get(job.kind, Work(0, 0))
            ahead[job.kind] = Work(before.n + 1, before.size_bytes + own.size_bytes)
        return found

    def place(self, job: Job, *, now: float, slots: int) -> Place | None:
        """A waiting job's place; None for one that does not wait."""
        return self.places([job], now=now, slots=slots).get(job.id)

    def _ahead_of(self, job: Job) -> dict[str, Work]:
        rows = self._db.query(
            "SELECT kind, COUNT(*) AS n, SUM(size_bytes) AS size FROM jobs INDEXED BY jobs_in_turn "
            "WHERE state = 'todo' AND (turn, id) < (?, ?) GROUP BY kind",
            (job.turn, job.id),
        )
        return {row["kind"]: Work(row["n"], row["size"]) for row in rows}

    def remaining(self, *, now: float, paces: Mapping[str, Pace]) -> list[float]:
        """Seconds that each job under way still takes, as far as can be said."""
        found = []
        for row in self._db.query(f"SELECT * FROM jobs WHERE state IN {TAKEN}"):
            job = job_of(row)
            if pace := paces.get(job.kind):
                found.append(max(pace.expected(Work(1, job.size_bytes)) - (now - (job.began_at or now)), 0.0))
        return found

    def upcoming(self, limit: int) -> list[Job]:
        """The jobs that come next, in their order; those that wait for a baseline count too."""
        rows = self._db.query(
            "SELECT * FROM jobs INDEXED BY jobs_in_turn WHERE state = 'todo' ORDER BY turn, id LIMIT ?", (limit,)
        )
        return [job_of(row) for row in rows]

    def under_way(self) -> list[Job]:
        """The jobs that workers have."""
        return [job_of(row) for row in self._db.query(f"SELECT * FROM jobs WHERE state IN {TAKEN} ORDER BY id")]

    def wanted_of(self, keys: Sequence[str]) -> set[str]:
        """Those of these variants' keys that an open job needs."""
        found: set[str] = set()
        for start in range(0, len(keys), _AT_ONCE):
            some = tuple(keys[start : start + _AT_ONCE])
            rows = self._db.query(
                "SELECT DISTINCT v.key FROM variants v JOIN jobs j ON j.variant_id = v.id "
                f"WHERE v.key IN ({marks(some)}) AND j.state IN ('todo', 'leased', 'running')",
                some,
            )
            found |= {row["key"] for row in rows}
        return found

    def ended_of(self, names: Sequence[str]) -> set[str]:
        """Those of these beginnings of jobs' keys (hex digits) whose job has ended."""
        found = set()
        for name in names:
            rows = self._db.conn.execute(
                f"SELECT state IN {ENDED} FROM jobs WHERE key >= ? AND key < ?", (name, f"{name}g")
            ).fetchall()
            if rows and all(row[0] for row in rows):
                found.add(name)
        return found

    def needs(self, limit: int) -> list[tuple[str, str | None, str, bool]]:
        """What open jobs need, in the order in which they come.

        (variant's key, reference's key, protocol as JSON, whether a worker has it) of each.
        """
        rows = self._db.query(
            "SELECT v.key, r.key AS reference, j.protocol, j.state FROM jobs j JOIN variants v ON v.id = j.variant_id "
            f"LEFT JOIN variants r ON r.id = j.reference_id WHERE j.state IN {TAKEN} "
            "UNION ALL SELECT * FROM (SELECT v.key, r.key AS reference, j.protocol, j.state "
            "FROM jobs j INDEXED BY jobs_in_turn JOIN variants v ON v.id = j.variant_id "
            "LEFT JOIN variants r ON r.id = j.reference_id WHERE j.state = 'todo' ORDER BY j.turn, j.id LIMIT ?)",
            (limit,),
        )
        return [(row["key"], row["reference"], row["protocol"], row["state"] in TAKEN) for row in rows]

    def open_keys(self) -> set[str]:
        """The keys of jobs that have not ended and were begun once: what they left is still of use."""
        rows = self._db.query(
            f"SELECT key FROM jobs WHERE state IN {TAKEN} OR (state = 'todo' AND began_at IS NOT NULL)"
        )
        return {row["key"] for row in rows}
