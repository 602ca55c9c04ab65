"""The cache before the database: one reading however many ask, no reading for names that are not there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from rows import ENDPOINT, LADDER, row

from bot.publish.fragments import Links, RepoRows
from bot.web import fragments as web
from bot.web.fragments import FRESH_S, Fragments
from core.errors import QuantcardError, StorageError


class Database:
    """What the cache reads, counted."""

    def __init__(self, *ids: str) -> None:
        self.names, self.listed = list(ids), 0
        self.read: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.at = 0.0
        self.rows = [row(label) for label in LADDER]

    def ids(self) -> list[str]:
        self.listed += 1
        return self.names

    def load(self, repo_id: str) -> RepoRows | None:
        assert self.go.wait(20)
        self.read.append(repo_id)
        return RepoRows(repo_id, {}, self.rows)

    def cache(self) -> Fragments:
        return Fragments(ids=self.ids, load=self.load, links=Links(ENDPOINT), now=lambda: self.at)


async def ask(cache: Fragments, *names: str) -> list[Any]:
    return await asyncio.gather(*(cache.of(name) for name in names), return_exceptions=True)


def run(what: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    return asyncio.run(what)


def test_many_askers_are_one_reading() -> None:
    database = Database("Own/Model")
    cache = database.cache()
    found = run(ask(cache, *["Own/Model", "own/MODEL"] * 20))
    assert {one.repo_id for one in found} == {"Own/Model"} and database.read == ["Own/Model"]
    database.at = FRESH_S + 1
    run(ask(cache, "Own/Model"))
    assert database.read == ["Own/Model"] * 2 and database.listed == 2


def test_names_that_are_not_there_cost_nothing() -> None:
    database = Database("a/b")
    cache = database.cache()
    assert run(ask(cache, "a/b"))[0].repo_id == "a/b"
    assert run(ask(cache, *[f"a/x{n}" for n in range(500)], "..", "a/b/c", "a/\n")) == [None] * 503
    assert database.read == ["a/b"] and database.listed == 1


def test_it_keeps_no_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_KEPT", 3)
    names = [f"a/m{n}" for n in range(5)]
    database = Database(*names)
    database.rows = database.rows[:1]
    cache = database.cache()
    for name in [*names, names[-1], names[0]]:
        run(ask(cache, name))
    assert database.read == [*names, names[0]] and len(cache._kept) == 3


def test_too_many_at_once_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_MAX_WAITING", 10)
    names = [f"a/m{n}" for n in range(30)]
    database = Database(*names)
    database.rows = database.rows[:1]
    cache = database.cache()

    async def flood() -> list[Any]:
        database.go.clear()
        asked = [asyncio.ensure_future(cache.of(name)) for name in names]
        await asyncio.sleep(0.2)
        database.go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = run(flood())
    assert sum(isinstance(one, QuantcardError) for one in found) == 20
    assert len(database.read) == 10 and run(ask(cache, names[-1]))[0].repo_id == names[-1]


def test_an_error_is_not_kept() -> None:
    database = Database("a/b")
    broken = Fragments(ids=database.ids, load=lambda _: (_ for _ in ()).throw(StorageError("busy")), links=Links(""))
    assert isinstance(run(ask(broken, "a/b"))[0], StorageError) and broken._waiting == 0


def test_a_repo_that_is_hidden_meanwhile_is_gone() -> None:
    database = Database("a/b")
    cache = database.cache()
    assert run(ask(cache, "a/b"))[0] is not None
    database.names, database.at = [], FRESH_S + 1
    assert run(ask(cache, "a/b")) == [None]
