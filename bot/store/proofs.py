"""Proofs of references, and which files may be one: what is asked of repos and variants by their base model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlite_utils import Database

from bot.store.db import immediate
from bot.store.repos import Variant, _variant
from core.tensor_proof import Verdict

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

    ``salt`` is what the sample was drawn with, so that anybody can repeat it; ``at`` when it was last found valid
    (seconds since the epoch).
    """

    reference_key: str
    base_model: str
    base_sha: str | None
    verdict: Verdict
    detail: str
    salt: str
    at: float


class Proofs:
    """Table proofs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def save(self, proof: Proof) -> None:
        """Write down a proof; it replaces what was known of this file and base model."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT OR REPLACE INTO proofs (reference_key, base_model, base_sha, verdict, detail, salt, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    proof.reference_key,
                    proof.base_model,
                    proof.base_sha,
                    proof.verdict,
                    proof.detail,
                    proof.salt,
                    proof.at,
                ),
            )

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

    def old(self, *, before: float, limit: int) -> list[tuple[Proof, Variant]]:
        """Proofs last found valid before ``before``, with where the file lies now; of files still there."""
        rows = self._db.query(
            f"SELECT p.*, v.id AS variant_id FROM proofs p JOIN variants v ON v.key = p.reference_key WHERE {_WIDE} "
            "AND p.at < ? GROUP BY p.reference_key, p.base_model ORDER BY p.at LIMIT ?",
            (before, limit),
        )
        found = []
        for row in list(rows):
            variant_id = row.pop("variant_id")
            [variant] = self._db.query("SELECT * FROM variants WHERE id = ?", (variant_id,))
            found.append((Proof(**row), _variant(variant)))
        return found

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

    def unproven(self, *, limit: int) -> list[tuple[str, Variant]]:
        """(base model, unquantized file that was not looked at yet): of each base model the first seen ones.

        Only where another repo names the same base model and has no unquantized file of its own, and none is proven.
        """
        rows = self._db.query(
            "SELECT base, variant_id FROM (SELECT r.base_model AS base, v.id AS variant_id, "
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
            found.append((row["base"], _variant(variant)))
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
