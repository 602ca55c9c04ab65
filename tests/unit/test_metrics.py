"""Metrics: the text format, what is counted, and that nobody is named."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.clock import FakeClock
from bot.health import Health
from bot.settings import Settings, load_settings
from bot.status_report import WebhookCounts
from bot.store import Store
from bot.store.counting import BOUNDS, History, counts, probe
from bot.vitals import Vitals
from bot.web.metrics import Metrics
from bot.web.prometheus import Family, Sample, by_label, gauge, histogram, render
from core.errors import StorageError

NOW = 1_800_000_000.0
_LABEL = r'[a-z_]+="(?:[^"\\\n]|\\[\\n"])*"'
#: A line of the format, by its own grammar.
LINE = re.compile(
    rf"(?P<name>[a-z_][a-z0-9_]*)(?:\{{(?P<labels>{_LABEL}(?:,{_LABEL})*)\}})? "
    r"(?P<value>NaN|[+-]Inf|-?[0-9.]+(?:e[+-]?[0-9]+)?)"
)
PAIR = re.compile(r"([a-z_]+)=\"((?:[^\"\\]|\\.)*)\"")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Every sample; the text must be as the format wants it."""
    found: Samples = {}
    known: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in known, "a family stands in one piece"
            known[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            name = match["name"]
            base = re.sub("_(bucket|sum|count)$", "", name)
            assert name in known or known.get(base) == "histogram", line
            labels = frozenset(PAIR.findall(match["labels"] or ""))
            assert (name, labels) not in found, "each sample once"
            found[name, labels] = float(match["value"])
    return found


def of(found: Samples, name: str, **labels: str) -> float:
    return found[f"quantcard_{name}", frozenset(labels.items())]


@given(value=st.text(max_size=30), number=st.floats(), help=st.text(max_size=30))
def test_whatever_the_values_are_the_text_can_be_read(value: str, number: float, help: str) -> None:
    text = render([by_label("x", "gauge", help, ["a"], {value: number})])
    [(found, read)] = parse(text).items()
    [(_, escaped)] = found[1]
    back = re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), escaped)
    assert back == value and (read == number or math.isnan(number))


def test_a_histogram_is_cumulative() -> None:
    found = parse(render([histogram("t", "h", "k", (1.0, 5.0), {"q": ([1, 0, 2], 33.5)})]))
    assert {dict(labels).get("le"): value for (_, labels), value in found.items() if "le" in dict(labels)} == {
        "1": 1, "5": 1, "+Inf": 3,
    }  # fmt: skip
    assert of(found, "t_sum", k="q") == 33.5 and of(found, "t_count", k="q") == 3


def test_families_without_values_are_left_out_and_bad_names_refused() -> None:
    assert render([gauge("x", "h", None), by_label("y", "gauge", "h", ["a"], {})]) == ""
    for bad in (Family("a-b", "gauge", "h", (Sample(1),)), Family("a", "gauge", "h", (Sample(1, (("l-", "v"),)),))):
        with pytest.raises(ValueError, match="no name"):
            render([bad])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(db=tmp_path / "q.db", hf_token="hf_secretsecret1", webhook_secret="long random text")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with Store(settings.db) as found:
        yield found


def job(store: Store, n: int, *, kind: str = "quality", repo: str = "secretive/hidden-GGUF") -> int:
    """A job that waits, of a variant of a repo that is private."""
    run = store.db.conn.execute
    run("INSERT OR IGNORE INTO repos (id, source, state) VALUES (?, 'follow', 'private')", (repo,))
    run(
        "INSERT INTO variants (id, repo_id, name, key, label, files, size_bytes, revision, first_seen) "
        "VALUES (?, ?, ?, ?, 'Q4', '[]', 1, 'r', 0)", (n, repo, f"hidden-{n}.gguf", f"{n:064x}"),
    )  # fmt: skip
    run(
        "INSERT INTO jobs (id, key, kind, variant_id, protocol, created_at, updated_at) "
        "VALUES (?, ?, ?, ?, '{}', ?, ?)",
        (n, f"key{n}", kind, n, NOW, NOW),
    )
    event(store, n, "todo", NOW)
    return n


def event(store: Store, job_id: int, state: str, at: float, **more: Any) -> None:
    run = store.db.conn.execute
    run("INSERT INTO job_events (job_id, at, state, reason) VALUES (?, ?, ?, ?)", (job_id, at, state, "by a machine"))
    sets = "".join(f", {name} = ?" for name in more)
    run(f"UPDATE jobs SET state = ?, updated_at = ?{sets} WHERE id = ?", (state, at, *more.values(), job_id))


def metrics(settings: Settings, **budget: Any) -> tuple[Metrics, Vitals]:
    vitals = Vitals(started_at=NOW - 60)
    clock = FakeClock(NOW + 100)
    health = Health(settings, vitals)
    return Metrics(settings, health, budget=lambda: budget, webhooks=WebhookCounts, clock=clock), vitals


def test_what_happened_is_counted_once(settings: Settings, store: Store) -> None:
    made, _ = metrics(settings)
    for n, kind in enumerate(("quality", "quality", "speed", "baseline"), 1):
        job(store, n, kind=kind)
    event(store, 1, "leased", NOW + 3)
    event(store, 1, "running", NOW + 10)
    for _ in range(2):
        found = parse(made.text())
        assert (
            of(found, "jobs", state="todo", kind="quality") == 1 == of(found, "jobs", state="running", kind="quality")
        )
        assert of(found, "job_wait_seconds_count", kind="quality") == 1
        assert of(found, "job_wait_seconds_sum", kind="quality") == 3
        assert of(found, "oldest_waiting_job_seconds") == 100
        assert ("quantcard_job_seconds_count", frozenset({("kind", "quality")})) not in found
    event(store, 1, "done", NOW + 30, seconds=20.0)
    event(store, 3, "leased", NOW + 5, runner="hf-jobs")
    event(store, 2, "leased", NOW + 5)
    event(store, 2, "failed", NOW + 6, error_type="GGUFError")
    found = parse(made.text())
    assert of(found, "job_seconds_count", kind="quality") == 1 and of(found, "job_seconds_sum", kind="quality") == 20
    assert of(found, "job_seconds_bucket", kind="quality", le="15") == 0
    assert of(found, "job_seconds_bucket", kind="quality", le="60") == 1
    assert of(found, "jobs_undone_total", kind="quality", state="failed", error="GGUFError") == 1
    assert of(found, "jobs_running", runner="hf-jobs", kind="speed") == 1
    assert of(found, "job_events_total", kind="quality", state="leased") == 2
    # Who asks for the first time now is told the same.
    fresh = parse(metrics(settings)[0].text())
    history = {key: value for key, value in found.items() if "_total" in key[0] or "seconds_" in key[0]}
    assert history and all(fresh[key] == value for key, value in history.items() if "process" not in key[0])


@hypothesis.settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["todo", "leased", "running", "done", "failed"]),
                  st.floats(-5, 1e5)), max_size=40),
    cuts=st.sets(st.integers(0, 40), max_size=4),
)  # fmt: skip
def test_any_history_adds_up_whenever_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, float]], cuts: set[int]
) -> None:
    with Store(_world(tmp_path_factory)) as store:
        store.db.conn.execute("DELETE FROM job_events")
        history, last, events = History(), dict[int, tuple[str, float]](), Counter[tuple[str, str]]()
        waits, runs, at = list[float](), list[float](), NOW
        for n, (job_id, state, after) in enumerate(steps):
            at += after
            event(store, job_id + 1, state, at)
            events["quality", state] += 1
            before, since = last.get(job_id, ("", 0.0))
            if before == "todo" and state in ("leased", "running"):
                waits.append(max(0.0, at - since))
            if before == "running" and state == "done":
                runs.append(max(0.0, at - since))
            last[job_id] = (state, at)
            if n in cuts:
                history.read(store.db)
        tally = history.read(store.db)
    assert tally.events == events
    for wanted, found in ((waits, tally.waits), (runs, tally.runs)):
        assert sum(one.seconds for one in found.values()) == pytest.approx(sum(wanted))
        classes = [0] * (len(BOUNDS) + 1)
        for took in wanted:
            classes[sum(took > bound for bound in BOUNDS)] += 1
        assert sum(wanted) == 0 or found["quality"].classes == classes


_MADE: dict[str, Path] = {}


def _world(factory: pytest.TempPathFactory) -> Path:
    """One database for all examples."""
    if "db" not in _MADE:
        _MADE["db"] = factory.mktemp("history") / "q.db"
        with Store(_MADE["db"]) as store:
            for n in range(1, 6):
                job(store, n)
    return _MADE["db"]


def test_a_database_that_was_put_back_has_a_shorter_history(store: Store) -> None:
    history = History()
    job(store, 1)
    event(store, 1, "leased", NOW + 1)
    assert history.read(store.db).events["quality", "leased"] == 1
    store.db.conn.execute("DELETE FROM job_events WHERE state = 'leased'")
    history.read(store.db)
    event(store, 1, "running", NOW + 2)
    assert history.read(store.db).events["quality", "running"] == 1


def test_nobody_is_named_and_no_secret_told(settings: Settings, store: Store) -> None:
    evil = 'x"} 1\nquantcard_ready 0 hf_secretsecret1'
    job(store, 1)
    event(store, 1, "failed", NOW, error_type=evil, error="hf_secretsecret1 in secretive/hidden-GGUF", runner=evil)
    job(store, 2)
    event(store, 2, "running", NOW, runner=evil)
    store.repos.follow("secretive", consented=True, now=NOW)
    store.results.save_pull(
        "secretive/hidden-GGUF", 1, key="k", status="open", url="https://x", author="botty", now=NOW
    )
    windows = {f"{evil}{n}": {"limit": 5, "remaining": 3} for n in range(100)}
    made, vitals = metrics(settings, windows=windows, requests={"api": 3, evil: 1})
    vitals.note(data_bytes={"models": 5, evil: 2, str(settings.data): 1}, backup_error="hf_secretsecret1")
    vitals.cycle_failed("hf_secretsecret1", seconds=1.0)
    text = made.text()
    found = parse(text)
    for secret in (*settings.secrets, "secretive", "hidden", "botty", str(settings.db.parent), "by a machine"):
        assert secret not in text
    assert of(found, "hub_requests_total", resource="other") == 1
    assert of(found, "hub_budget_limit", resource="other") == 500
    assert of(found, "jobs_undone_total", kind="quality", state="failed", error="other") == 1
    assert of(found, "pulls", state="open") == 1 and of(found, "follows") == 1
    assert len(text) < 20_000


def test_a_database_that_can_not_be_read_leaves_the_rest(settings: Settings) -> None:
    settings.db.write_text("no database, " * 100)
    made, vitals = metrics(settings)
    vitals.note(draining=True)
    found = parse(made.text())
    assert of(found, "ready") == 0 and of(found, "draining") == 1
    assert found["process_start_time_seconds", frozenset()] == NOW - 60
    assert not any("jobs" in name for name, _ in found)


def test_a_probe_changes_nothing_and_says_what_is_wrong(tmp_path: Path, settings: Settings, store: Store) -> None:
    with pytest.raises(StorageError, match="not there"):
        probe(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    probe(settings.db)
    assert counts(store.db).jobs == {}
    store.db.conn.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"):
        probe(settings.db)
    store.db.conn.execute("ROLLBACK")
    (tmp_path / "text.db").write_text("text" * 999)
    with pytest.raises(StorageError, match="not a database"):
        probe(tmp_path / "text.db")
