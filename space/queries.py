"""Every view as a question to the dataset: typed answers, page by page, none larger than a page may be.

A method raises :class:`core.errors.InputError` with a sentence for what can't be, and gives None for what is not there.
"""

from __future__ import annotations

from typing import Any

from core.picks import Wish, choose
from space.data import Results
from space.filters import Filters, order_by, order_models_by
from space.rows import environments, measurement, model_row, option, owner_row, point, variant_row
from space.shapes import (
    DataStatus,
    Facet,
    Facets,
    Hit,
    Measurement,
    ModelPage,
    ModelRow,
    ModelsPage,
    OwnerPage,
    Picked,
    Point,
    VariantRow,
    VariantsPage,
)
from space.snapshot import Snapshot
from space.text import clean

MAX_PER_PAGE = 100
PER_PAGE = 50
#: Points of one plot; more is a cloud, and slow on a phone.
MAX_POINTS = 500
MAX_FACETS = 100
MAX_HITS = 50
#: Options that a pick looks at, the closest and the smallest of a model with more.
MAX_OPTIONS = 2000
_MAX_PAGE = 1_000_000
_TEXT = 200

_OWNER = (
    "SELECT owner, count(*) FILTER (state <> 'stale') AS n_variants, "
    "count(*) FILTER (kld_mean IS NOT NULL AND state = 'measured') AS n_measured, "
    "count(*) FILTER (state IN ('failed', 'retracted')) AS n_failed, count(DISTINCT model) AS n_models, "
    "count(DISTINCT repo_id) AS n_repos, count(*) FILTER (on_front) AS on_front, "
    "max(measured_at) AS measured_at FROM measurements WHERE owner = ? GROUP BY owner"
)
_POINT = (
    "id, label, owner, size_bytes, kld_mean, kld_stderr, kld_p99_9, tg_ts, speed_imported, environment_fingerprint, "
    "on_front, on_speed_front, plane, pool"
)
_FACETS = {
    "models": ("model", "model"),
    "owners": ("owner", "owner"),
    "labels": ("label", "label"),
    "protocols": ("protocol_fingerprint", "protocol_name"),
    "environments": ("environment_fingerprint", "environment_fingerprint"),
}


class Queries:
    """Questions to the last good copy of the dataset; safe to use from many threads."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def status(self) -> DataStatus:
        """What is shown, how old it is, what went wrong since."""
        found, published, age = self.results, self.results.published, self.results.age()
        return DataStatus(
            name=found.source.name,
            revision=published.revision if published else None,
            published_at=published.at if published else None,
            checked_at=found.checked_at,
            age_s=age.total_seconds() if age is not None else None,
            n_rows=found.snapshot.n_rows,
            n_models=found.snapshot.n_models,
            n_left_out=found.snapshot.n_left_out,
            error=found.error,
            line=found.status_line(),
        )

    def models(self, search: str = "", sort: str = "", page: int = 1, per_page: int = PER_PAGE) -> ModelsPage:
        """Base models, those with the most variants first; ``sort`` is a name of ``MODEL_SORTS``, with - descending."""
        now = self.results.snapshot
        words = _words(search)
        where = " AND ".join(["true", *("contains(haystack, ?)" for _ in words)])
        total = _number(now, f"SELECT count(*) FROM models WHERE {where}", words)
        place = _place(total, page, per_page)
        rows = _records(
            now,
            f"SELECT * FROM models WHERE {where} ORDER BY {order_models_by(sort)} LIMIT ? OFFSET ?",
            [*words, place["per_page"], (place["page"] - 1) * place["per_page"]],
        )
        return ModelsPage(rows=[model_row(row) for row in rows], **place)

    def model(
        self,
        model: str,
        filters: Filters | None = None,
        sort: str = "kld_mean",
        page: int = 1,
        per_page: int = PER_PAGE,
    ) -> ModelPage | None:
        """A base model with its variants from all uploaders; None where it is not known."""
        now = self.results.snapshot
        known = self._model(now, model)
        if known is None:
            return None
        narrowed = (filters or Filters()).model_copy(update={"model": known.model})
        return ModelPage(
            model=known,
            variants=self._variants(now, narrowed, sort, page, per_page),
            facets=self._facets(now, Filters(model=model[:300]), without=("models",)),
        )

    def owner(
        self, owner: str, filters: Filters | None = None, sort: str = "model", page: int = 1, per_page: int = PER_PAGE
    ) -> OwnerPage | None:
        """An uploader with their variants; None where nothing of theirs is known."""
        now = self.results.snapshot
        if len(owner) > 300:
            return None
        found = now.remembered(("owner", owner), lambda: _records(now, _OWNER, [owner]))
        if not found:
            return None
        narrowed = (filters or Filters()).model_copy(update={"owner": owner})
        return OwnerPage(
            owner=owner_row(found[0]),
            variants=self._variants(now, narrowed, sort, page, per_page),
            facets=self._facets(now, Filters(owner=owner), without=("owners",)),
        )

    def variants(
        self, filters: Filters | None = None, sort: str = "model", page: int = 1, per_page: int = PER_PAGE
    ) -> VariantsPage:
        """One page of all variants that match."""
        return self._variants(self.results.snapshot, filters or Filters(), sort, page, per_page)

    def facets(self, filters: Filters | None = None) -> Facets:
        """What the variants that match can be narrowed by."""
        return self._facets(self.results.snapshot, filters or Filters())

    def variant(self, id: str) -> VariantRow | None:
        """One variant as tables show it."""
        now = self.results.snapshot
        found = _records(now, "SELECT * FROM measurements WHERE id = ?", [id])
        return variant_row(found[0], environments(now)) if found else None

    def measurement(self, id: str) -> Measurement | None:
        """Everything that is known of one variant."""
        now, published = self.results.snapshot, self.results.published
        for record in _records(now, "SELECT * FROM measurements WHERE id = ?", [id]):

            def url(path: str) -> str | None:
                return self.results.source.url(published, path) if published else None

            return measurement(record | now.long(record["place"]), environments(now), url)
        return None

    def search(self, text: str, limit: int = 20) -> list[Hit]:
        """What bears these words in its name: models, uploaders and repos before single files."""
        now, words = self.results.snapshot, _words(text)
        limit = max(0, min(limit, MAX_HITS))
        if not words or not limit:
            return []
        hits = []
        for kind, column in (("model", "model"), ("owner", "owner"), ("repo", "repo_id")):
            where = " AND ".join(f"contains(lower({column}), ?)" for _ in words)
            hits += now.query(
                f"SELECT '{kind}', {column}, {column}, count(*) AS n FROM measurements WHERE {where} "
                f"GROUP BY {column} ORDER BY n DESC, {column} LIMIT ?",
                [*words, limit],
            ).fetchall()
        where = " AND ".join("contains(haystack, ?)" for _ in words)
        hits += now.query(
            f"SELECT 'variant', id, repo_id || ' ' || label, 1 FROM measurements WHERE {where} AND state <> 'stale' "
            "ORDER BY length(haystack), id LIMIT ?",
            [*words, limit],
        ).fetchall()
        return [Hit(kind=kind, key=key[:400], label=clean(label), n=n) for kind, key, label, n in hits[:limit]]

    def points(self, filters: Filters | None = None, limit: int = MAX_POINTS) -> list[Point]:
        """Measured variants that match as plots draw them: fronts first, then the closest; references left out."""
        now = self.results.snapshot
        where, values = (filters or Filters()).where()
        rows = _records(
            now,
            f"SELECT *, dense_rank() OVER (ORDER BY plane, pool) AS number FROM (SELECT {_POINT} FROM measurements "
            f"WHERE {where} AND kld_mean IS NOT NULL AND NOT is_reference AND state = 'measured' "
            "ORDER BY on_front OR on_speed_front DESC, kld_mean, id LIMIT ?) "
            "ORDER BY on_front OR on_speed_front DESC, kld_mean, id",
            [*values, max(0, min(limit, MAX_POINTS))],
        )
        return [point(row) for row in rows]

    def pick(self, model: str, wish: Wish) -> Picked | None:
        """The best file of a model for a wish; None where the model is not known."""
        now = self.results.snapshot
        known = self._model(now, model)
        if known is None:
            return None
        classes = environments(now)
        records = _records(
            now,
            "SELECT m.* FROM measurements AS m JOIN models USING (model) WHERE m.model = ? AND m.ranked "
            "AND m.plane = main_plane AND m.pool = '' ORDER BY m.kld_mean, m.id LIMIT ?",
            [known.model, MAX_OPTIONS],
        )
        rows = {record["id"]: record for record in records}
        choice = choose([option(record, classes, wish.hardware) for record in records], wish)

        def shown(one: Any) -> VariantRow | None:
            return variant_row(rows[one.id], classes) if one else None

        return Picked(
            model=clean(known.model),
            best=shown(choice.best),
            because=choice.because,
            runner_up=shown(choice.runner_up),
            runner_up_because=choice.runner_up_because,
            need_bytes=choice.need_bytes,
            equal=list(choice.equal[:20]),
            n_fit=choice.n_fit,
            n_options=len(records),
            notes=list(choice.notes),
        )

    def _model(self, now: Snapshot, model: str) -> ModelRow | None:
        found = _records(now, "SELECT * FROM models WHERE model = ?", [model]) if len(model) <= 300 else []
        return model_row(found[0]) if found else None

    def _variants(self, now: Snapshot, filters: Filters, sort: str, page: int, per_page: int) -> VariantsPage:
        where, values = filters.where()
        total = _number(now, f"SELECT count(*) FROM measurements WHERE {where}", values)
        place = _place(total, page, per_page)
        rows = _records(
            now,
            f"SELECT * FROM measurements WHERE {where} ORDER BY {order_by(sort)} LIMIT ? OFFSET ?",
            [*values, place["per_page"], (place["page"] - 1) * place["per_page"]],
        )
        classes = environments(now)
        return VariantsPage(rows=[variant_row(row, classes) for row in rows], **place)

    def _facets(self, now: Snapshot, filters: Filters, *, without: tuple[str, ...] = ()) -> Facets:
        return now.remembered((filters, without), lambda: self._counted(now, filters, without))

    def _counted(self, now: Snapshot, filters: Filters, without: tuple[str, ...]) -> Facets:
        where, values = filters.where()
        found = {}
        for name, (key, label) in _FACETS.items():
            if name not in without:
                rows = now.query(
                    f"SELECT {key}, any_value({label}), count(*) AS n FROM measurements WHERE {where} "
                    f"AND {key} IS NOT NULL GROUP BY 1 ORDER BY n DESC, 1 LIMIT ?",
                    [*values, MAX_FACETS],
                ).fetchall()
                found[name] = [Facet(key=key[:300], label=clean(label, limit=100), n=n) for key, label, n in rows]
        return Facets(**found)


def _words(text: str) -> list[str]:
    return text[:_TEXT].lower().split()[:8]


def _place(total: int, page: int, per_page: int) -> dict[str, int]:
    """Where a page stands; numbers that can't be are taken for the nearest that can."""
    per_page = max(1, min(per_page, MAX_PER_PAGE))
    pages = max(1, -(-total // per_page))
    return {"total": total, "page": max(1, min(page, pages, _MAX_PAGE)), "pages": pages, "per_page": per_page}


def _number(now: Snapshot, sql: str, values: list[Any]) -> int:
    return now.remembered((sql, *values), lambda: int(now.query(sql, values).fetchone()[0]))


def _records(now: Snapshot, sql: str, values: list[Any]) -> list[dict[str, Any]]:
    found = now.query(sql, values)
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
