"""Proofs of references, and which files may be one: what is asked of repos and variants by their base model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from sqlite_utils import Database

from bot.store.db import immediate
from bot.store.repos import Variant, _variant
from core.patience import LONGEST_S, wait
from core.tensor_proof import Verdict

#: ``unasked``: nothing was compared, since it would help nobody now, or the Hub refused.
ProofState = Verdict | Literal["unasked"]

#: Seconds for which an owner's further files for a base model are not proven, after one of them differed from it.
DISTRUST_S: Final = 90 * 86400.0
#: Variants of eight bits a weight and more, which alone can be a reference: the condition of the index on them.
_WIDE = "v.state = 'current' AND v.note IS NULL AND json_extract(v.inspection, '$.bpw') >= 8"
#: Of these, what can only be unquantized.
_UNQUANTIZED = f"{_WIDE} AND json_extract(v.inspection, '$.bpw') > 15"
#: Files of one base model that are looked at; more would be a flood, not a choice.
_MOST = 200
#: Files of one base model that are offered for a proof in one go.
_A_TURN = 8


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether a file's sampled tensors are its base model's, as of one commit of that.

    Times are seconds since the epoch.

    Attributes:
        salt: what the sample was drawn with, so that anybody can repeat it.
        at: when it was last looked at.
        seen: what was compared so far (:class:`core.tensor_proof.Seen`, as text).
        owner: who had uploaded the file that was looked at.
        differed_at: when sampled values differed.
        next_at: when it is to be looked at again.
        tries: how often the Hub refused since it last did not.
    """

    reference_key: str
    base_model: str
    base_sha: str | None
    verdict: ProofState
    detail: str
    salt: str
    at: float
    seen: str = ""
    owner: str = ""
    differed_at: float | None = None
    next_at: float = 0.0
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that is to be looked at as a reference for ``base_model``; ``proof``: what is known of that."""

    base_model: str
    variant: Variant
    since: float
    proof: Proof | None = None


class Proofs:
    """Table proofs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def save(self, proof: Proof) -> None:
        """Write down a proof; it replaces what was known of this file and base model."""
        values = asdict(proof)
        with immediate(self._db):
            self._db.conn.execute(
                f"INSERT OR REPLACE INTO proofs ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
                tuple(values.values()),
            )

    def put_off(self, found: Waiting, *, why: str, now: float, first: float) -> None:
        """Look at it later, ever later, since the Hub refused; what was found stays.

        Args:
            why: what is noted of a file that was never looked at.
            first: seconds, the first time.
        """
        tries = found.proof.tries if found.proof else 0
        self._later(found, why, now=now, until=now + wait(tries, first=first), tries=tries + 1)

    def no_use(self, found: Waiting, *, now: float) -> None:
        """Note that nobody would be helped now: it is asked for again in a day, or once there is somebody."""
        self._later(found, "It would help nobody now.", now=now, until=now + LONGEST_S, tries=0)

    def _later(self, found: Waiting, why: str, *, now: float, until: float, tries: int) -> None:
        old = found.proof
        if old is None or old.verdict == "unasked":
            old = Proof(found.variant.key, found.base_model, None, "unasked", why, "", now)
        self.save(replace(old, at=now, next_at=until, tries=tries))

    def differed(self, owner: str, base_model: str, *, weights: str, now: float) -> float | None:
        """When a file of an owner was last found to differ from a base model, within the time of distrust, or None.

        Args:
            weights: which of the base model's, as :class:`core.tensor_proof.Seen` calls them.
        """
        [row] = self._db.query(
            "SELECT MAX(differed_at) AS at FROM proofs WHERE base_model = ? AND owner = ? "
            "AND json_extract(seen, '$.weights') = ? AND differed_at > ?",
            (base_model, owner, weights, now - DISTRUST_S),
        )
        at: float | None = row["at"]
        return at

    def proof(self, reference_key: str, base_model: str) -> Proof | None:
        """What is known of a file as a reference for a base model, or None."""
        for row in self._db.query(
            "SELECT * FROM proofs WHERE reference_key = ? AND base_model = ?", (reference_key, base_model)
        ):
            return Proof(**row)
        return None

    def proven(self, base_model: str) -> set[str]:
        """The keys of the files that are proven to have a base model's weights."""
        rows = self._db.query(
            "SELECT reference_key FROM proofs WHERE base_model = ? AND verdict = 'proven'", (base_model,)
        )
        return {row["reference_key"] for row in rows}

    def due(self, *, now: float, limit: int) -> list[Waiting]:
        """Files still there that are to be looked at again, the longest waiting first.

        Those that helped nobody also when somebody came since who might be helped.
        """
        rows = self._db.query(
            "SELECT p.*, min(v.id) AS variant_id FROM proofs p JOIN variants v ON v.key = p.reference_key "
            f"WHERE {_WIDE} AND (p.next_at <= ? OR (p.verdict = 'unasked' AND p.tries = 0 AND EXISTS ("
            "SELECT 1 FROM repos o JOIN variants n ON n.repo_id = o.id "
            "WHERE o.base_model = p.base_model COLLATE NOCASE AND n.state = 'current' "
            "AND n.inspection IS NOT NULL AND n.first_seen > p.at))) "
            "GROUP BY p.reference_key, p.base_model ORDER BY p.next_at LIMIT ?",
            (now, limit),
        )
        return [self._waiting(row.pop("variant_id"), row, since=row["next_at"]) for row in list(rows)]

    def _waiting(self, variant_id: int, row: dict[str, Any], *, since: float) -> Waiting:
        [variant] = self._db.query("SELECT * FROM variants WHERE id = ?", (variant_id,))
        proof = Proof(**row)
        return Waiting(proof.base_model, _variant(variant), since, proof)

    def wide(self, base_model: str, *, owners: Collection[str]) -> list[Variant]:
        """Files of eight bits and more of a base model: these owners' (lower case), and the proven ones.

        By what their repos say; the first seen come first.
        """
        marks = ",".join("?" * len(owners))
        rows = self._db.query(
            "SELECT v.* FROM variants v JOIN repos r ON r.id = v.repo_id "
            f"WHERE (r.base_model = ? COLLATE NOCASE OR r.id = ? COLLATE NOCASE) AND {_WIDE} "
            f"AND (lower(substr(r.id, 1, instr(r.id, '/') - 1)) IN ({marks}) OR v.key IN "
            "(SELECT reference_key FROM proofs WHERE base_model = ? AND verdict = 'proven')) ORDER BY v.id LIMIT ?",
            (base_model, base_model, *owners, base_model, _MOST),
        )
        return [_variant(row) for row in rows]

    def unproven(self, *, limit: int) -> list[Waiting]:
        """Unquantized files that were never looked at: of each base model the first seen ones.

        Only where another repo names the same base model and has no unquantized file of its own, and none is proven.
        """
        rows = self._db.query(
            "SELECT base, variant_id, first_seen FROM (SELECT r.base_model AS base, v.id AS variant_id, v.first_seen, "
            "row_number() OVER (PARTITION BY lower(r.base_model) ORDER BY v.id) AS number "
            f"FROM variants v JOIN repos r ON r.id = v.repo_id WHERE {_UNQUANTIZED} AND r.base_model IS NOT NULL "
            "AND NOT EXISTS (SELECT 1 FROM proofs p WHERE p.reference_key = v.key AND p.base_model = r.base_model) "
            "AND NOT EXISTS (SELECT 1 FROM proofs p JOIN variants w ON w.key = p.reference_key "
            "WHERE p.base_model = r.base_model AND p.verdict = 'proven' AND w.state = 'current') "
            f"AND EXISTS (SELECT 1 FROM repos o WHERE {_IN_NEED.format(base='r.base_model')} AND o.id != r.id)) "
            "WHERE number <= ? ORDER BY number, base LIMIT ?",
            (_A_TURN, limit),
        )
        found = []
        for row in list(rows):
            [variant] = self._db.query("SELECT * FROM variants WHERE id = ?", (row["variant_id"],))
            found.append(Waiting(row["base"], _variant(variant), row["first_seen"]))
        return found

    def in_need(self, base_model: str, *, limit: int) -> list[str]:
        """Repos that name a base model and have no unquantized file of their own."""
        where = _IN_NEED.format(base="?")
        rows = self._db.query(f"SELECT o.id FROM repos o WHERE {where} ORDER BY o.id LIMIT ?", (base_model, limit))
        return [row["id"] for row in rows]


_IN_NEED = (
    "o.base_model = {base} COLLATE NOCASE AND EXISTS (SELECT 1 FROM variants n WHERE n.repo_id = o.id "
    "AND n.state = 'current' AND n.inspection IS NOT NULL) AND NOT EXISTS (SELECT 1 FROM variants v "
    f"WHERE v.repo_id = o.id AND {_UNQUANTIZED})"
)
