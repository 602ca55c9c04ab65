"""The page's named API endpoints, for scripts and ``gradio_client``: plain JSON in, the shapes of the views out."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context
from pydantic import BaseModel

from core.errors import InputError, QuantcardError
from core.picks import HARDWARE, TASKS, Wish
from core.repo_names import is_repo_id
from space import downloads
from space.api_checks import checked
from space.data import MAX_LIMIT
from space.filters import Filters
from space.pairing import Pairing
from space.queries import Queries
from space.shapes import (
    Compared,
    DataStatus,
    Hits,
    Measurement,
    ModelPage,
    ModelsPage,
    OwnerPage,
    Picked,
    VariantsPage,
)
from space.views import State, Views, entry_json


def add_api(views: Views, readers: int) -> None:
    """Register the endpoints on the page being built; ``readers`` of them may run at once."""
    queries, pairing = Queries(views.results), Pairing(views.results)
    for read, shape in (*_tables(queries), *_answers(queries, pairing)):
        _register(read, shape, concurrency_limit=readers)
    for read in _plain(views):
        _register(read, None, concurrency_limit=readers)

    def request(repo: str, user: str = "") -> dict:
        """Ask for a benchmark of a repo: whether it was accepted, and a sentence."""
        return views.request(repo, user).model_dump(mode="json")

    # One at a time: whoever asks writes into a database.
    _register(request, None, concurrency_limit=1, concurrency_id="request")


def _register(function: Any, shape: type[BaseModel] | None, **limits: Any) -> None:
    gr.api(checked(function), api_name=function.__name__, **limits)
    page = Context.root_block
    if shape is not None and page is not None:
        # gr.api knows type hints only, of which a dict says nothing.
        output: Any = page.fns[max(page.fns)].outputs[0]
        output._api_info = _readable(shape.model_json_schema())


def _readable(schema: Any) -> Any:
    """A JSON schema without 'additionalProperties: false', over which Gradio stumbles."""
    if isinstance(schema, list):
        return [_readable(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _readable(one)
        for name, one in schema.items()
        if name != "additionalProperties" or not isinstance(one, bool)
    }


def _tables(queries: Queries) -> list[tuple[Any, type[BaseModel]]]:
    """Models, uploaders and variants, page by page."""

    def status() -> dict:
        """What is shown, how old it is, and what went wrong since."""
        return _json(queries.status())

    def models(search: str = "", sort: str = "", page: int = 1, per_page: int = 50) -> dict:
        """Base models with their best files. A '-' before the sort column: descending."""
        return _json(queries.models(search, sort, page, per_page))

    def model(
        model: str,
        search: str = "",
        owner: str = "",
        protocol: str = "",
        label: str = "",
        show: str = "all",
        include_stale: bool = False,
        sort: str = "kld_mean",
        page: int = 1,
        per_page: int = 50,
    ) -> dict:
        """All variants of a base model from all uploaders."""
        filters = Filters.of(
            {"search": search, "owner": owner, "protocol": protocol, "label": label, "show": show or "all",
             "include_stale": include_stale}
        )  # fmt: skip
        return _json(queries.model(model, filters, sort, page, per_page), "No such base model is known here.")

    def uploader(
        owner: str,
        search: str = "",
        include_stale: bool = False,
        sort: str = "model",
        page: int = 1,
        per_page: int = 50,
    ) -> dict:
        """All variants of one uploader."""
        filters = Filters.of({"search": search, "include_stale": include_stale})
        return _json(queries.owner(owner, filters, sort, page, per_page), "Nothing of this uploader is known here.")

    def variants(
        model: str = "",
        owner: str = "",
        repo: str = "",
        protocol: str = "",
        label: str = "",
        flag: str = "",
        search: str = "",
        state: str = "",
        show: str = "all",
        min_bytes: int = 0,
        max_bytes: int = 0,
        max_kld: float = 0.0,
        include_stale: bool = False,
        sort: str = "model",
        page: int = 1,
        per_page: int = 50,
    ) -> dict:
        """All variants that match; a bound of 0 is none."""
        filters = Filters.of(
            {"model": model, "owner": owner, "repo": repo, "protocol": protocol, "label": label, "flag": flag,
             "search": search, "state": state, "show": show or "all", "min_bytes": min_bytes or None,
             "max_bytes": max_bytes or None, "max_kld": max_kld or None, "include_stale": include_stale}
        )  # fmt: skip
        return _json(queries.variants(filters, sort, page, per_page))

    def search(text: str, limit: int = 20) -> dict:
        """Models, uploaders, repos and files by name."""
        return _json(Hits(hits=queries.search(text, limit)))

    return [
        (status, DataStatus),
        (models, ModelsPage),
        (model, ModelPage),
        (uploader, OwnerPage),
        (variants, VariantsPage),
        (search, Hits),
    ]


def _answers(queries: Queries, pairing: Pairing) -> list[tuple[Any, type[BaseModel]]]:
    """One file, two files, the best file."""

    def measurement(id: str) -> dict:
        """Everything that is known of one variant."""
        return _json(queries.measurement(id), "There is no such measurement.")

    def compare(a: str, b: str) -> dict:
        """Two variants, by their ids: paired on the same tokens where that can be, else by their intervals."""
        return _json(pairing.compare(a, b))

    def pick(
        model: str, memory_gb: float = 8.0, context: int = 8192, hardware: str = "any", task: str = "chat"
    ) -> dict:
        """The best file of a base model for so much memory (GB of 10^9 bytes), context, hardware and task."""
        return _json(queries.pick(model, wish_of(memory_gb, context, hardware, task)), "No such base model is known.")

    return [(measurement, Measurement), (compare, Compared), (pick, Picked)]


def wish_of(memory_gb: float, context: int, hardware: str, task: str) -> Wish:
    """A wish out of what somebody typed.

    Raises:
        InputError: something in it can't be.
    """
    if not 0 < memory_gb <= 100_000:
        raise InputError("memory_gb must be more than 0 and at most 100,000 GB.")
    if not 1 <= context <= 100_000_000:
        raise InputError("context must be at least 1 token and at most 100 million.")
    for name, value, known in (("hardware", hardware, HARDWARE), ("task", task, TASKS)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}.")
    return Wish(int(memory_gb * 1e9), context, hardware, task)  # type: ignore[arg-type]


def _plain(views: Views) -> list[Any]:
    """What gives rows as they stand in the dataset, files, and the queue."""
    kept = downloads.Folder()

    def leaderboard(
        model: str = "",
        owner: str = "",
        protocol: str = "",
        search: str = "",
        sort: str = "model",
        include_stale: bool = False,
        limit: int = 50,
        offset: int = 0,
    ) -> dict:
        """Rows of the dataset that match, with the number of all that do. A '-' before the sort column: descending."""
        filters = State(model, owner, protocol, search[:200], include_stale).filters
        entries = views.results.rows(
            **filters,
            sort=sort.removeprefix("-"),
            descending=sort.startswith("-"),
            limit=min(limit, MAX_LIMIT),
            offset=offset,
        )
        return {
            "status": views.results.status_line(),
            "revision": views.results.revision,
            "total": views.results.count(**filters),
            "rows": [entry_json(entry) for entry in entries],
        }

    def download(
        format: str = "csv",
        model: str = "",
        owner: str = "",
        protocol: str = "",
        label: str = "",
        search: str = "",
        include_stale: bool = False,
        sort: str = "model",
    ) -> dict:
        """The table that matches as a file: csv, json or parquet; at most 20,000 rows."""
        filters = Filters.of(
            {"model": model, "owner": owner, "protocol": protocol, "label": label, "search": search,
             "include_stale": include_stale}
        )  # fmt: skip
        path = downloads.write(views.results, filters, format, sort=sort, folder=kept.fresh())
        return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def fragments(repo: str) -> dict:
        """Where a repo's section, figures and badge for its card are found in the dataset."""
        if not is_repo_id(repo):
            raise InputError("A repo is written owner/name.")
        base = f"{views.hub_url}/datasets/{views.results.source.name}/resolve/main/cards/{repo}"
        names = {"section": "section.md", "figures": "quantcard.json", "badge": "badge.svg"}
        return {name: f"{base}/{file}" for name, file in names.items()}

    def queue() -> list:
        """The jobs that run, wait or failed."""
        return [row.model_dump(mode="json") for row in views.queue_rows()]

    return [leaderboard, download, fragments, queue]


def _json(found: BaseModel | None, missing: str = "There is no such thing.") -> dict[str, Any]:
    if found is None:
        raise QuantcardError(missing)
    return found.model_dump(mode="json")
