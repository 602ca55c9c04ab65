"""What the doctor says of settings, and how a check that fails or hangs ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from bot.doctor.checks import CHECKS, Check, run_checks
from bot.doctor.config import Surroundings, judge_settings, unread_names
from bot.doctor.finding import Finding, bad, ok, worst
from bot.doctor.here import Here
from bot.doctor.runners import judge_runners
from bot.settings import Settings
from core.errors import SettingsError, StorageError

AROUND = Surroundings({}, n_cpus=8)
DIGEST = "sha256:" + "a" * 64


def settings(tmp_path: Path, **given: Any) -> Settings:
    more = {"hf_token": "hf_secret", "operator": "me@example.org", **given}
    return Settings(db=tmp_path / "a.db", **more)


def test_settings_that_are_meant_so_are_well(tmp_path: Path) -> None:
    (found,) = judge_settings(settings(tmp_path), AROUND)
    assert found.state == "ok" and "wiki512" in found.found


@pytest.mark.parametrize(
    ("given", "state", "says"),
    [
        ({"public_url": "https://q.example"}, "warn", "webhook_secret is empty"),
        ({"public_url": "q.example", "webhook_secret": "s" * 40}, "bad", "no address"),
        ({"webhook_secret": "short"}, "warn", "only 5 characters"),
        ({"webhook_secret": "schlüssel" * 9}, "bad", "ASCII"),
        ({"hf_endpoint": "http://hub.example"}, "warn", "in clear"),
        ({"hf_endpoint": "hub"}, "bad", "no address"),
        ({"hf_endpoint": "http://[::1"}, "bad", "no address"),
        ({"dataset": "results"}, "bad", "no repo"),
        ({"dataset": "bot/results", "hf_token": None}, "warn", "no token"),
        ({"trusted_owners": ["ggml-org", "a b"]}, "warn", "a b"),
        ({"threads": 9}, "warn", "may use 8 CPUs"),
        ({"operator": ""}, "warn", "who runs the bot"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, given: dict[str, Any], state: str, says: str) -> None:
    found = judge_settings(settings(tmp_path, **given), AROUND)
    assert [one.state for one in found] == [state], found
    assert says in found[0].found and found[0].fix


@pytest.mark.parametrize(
    "host", ["http://127.0.0.1:8788", "http://localhost:1", "http://[::1]:5", "https://hub.example"]
)
def test_a_hub_on_this_machine_or_with_tls_is_no_danger(tmp_path: Path, host: str) -> None:
    assert judge_settings(settings(tmp_path, hf_endpoint=host), AROUND)[0].state == "ok"


def test_names_that_nobody_reads_are_named_with_what_was_meant(tmp_path: Path) -> None:
    around = Surroundings({"QUANTCARD_LEASE": "3", "QUANTCARD_HF_TOKEN": "hf_x", "QUANTCARD_XYZZY": "1",
                           "QUANTCARD_DB": "a", "quantcard_db": "b", "QUANTCARD_CONFIG": "c"}, n_cpus=8)  # fmt: skip
    found = judge_settings(settings(tmp_path), around)
    said = {one.found.split(" ")[0]: one.fix for one in found}
    assert said == {
        "QUANTCARD_LEASE": "Write QUANTCARD_LEASE_S.",
        "QUANTCARD_HF_TOKEN": "Write HF_TOKEN.",
        "QUANTCARD_XYZZY": "Take it away; docs/settings.md lists them all.",
    }
    assert "hf_x" not in str(found), "a value may be a secret"
    assert unread_names(["PATH", "QUANTCARD_PORT"], Settings.model_fields) == []


def test_what_stands_around_the_settings(tmp_path: Path) -> None:
    around = Surroundings(
        {"HF_HUB_OFFLINE": "1"}, 8, "quantcard.toml", 0o644, "There is no protocol 'x'.", "img:latest"
    )
    found = judge_settings(settings(tmp_path), around)
    assert worst(one.state for one in found) == "bad" and len(found) == 4
    text = " ".join(one.found + one.fix for one in found)
    assert all(word in text for word in ("no protocol 'x'", "HF_HUB_OFFLINE", "chmod 600", "not pinned by digest"))
    pinned = Surroundings({}, 8, "quantcard.toml", 0o600, "", f"registry/img@{DIGEST}")
    assert judge_settings(settings(tmp_path), pinned)[0].state == "ok"


# how checks are run


def raising(_: Here) -> list[Finding]:
    raise ZeroDivisionError("oops\x1b[31m")


def refusing(_: Here) -> list[Finding]:
    raise StorageError("The disk is gone.")


def test_a_check_that_raises_is_unknown_with_the_reason_and_ends_no_other(tmp_path: Path) -> None:
    checks = [Check("a", raising), Check("b", refusing), Check("c", lambda _: [ok("fine")]), Check("d", lambda _: [])]
    done = list(run_checks(Here(settings(tmp_path)), checks))
    assert [(one.name, one.state) for one in done] == [("a", "unknown"), ("b", "unknown"), ("c", "ok"), ("d", "ok")]
    assert "ZeroDivisionError: oops" in done[0].findings[0].found and "\x1b" not in done[0].findings[0].found
    assert "The disk is gone." in done[1].findings[0].found


def test_a_check_that_hangs_is_given_up(tmp_path: Path) -> None:
    never = threading.Event()

    def hang(_: Here) -> list[Finding]:
        never.wait()
        return []

    try:
        (done,) = run_checks(Here(settings(tmp_path)), [Check("a", hang, limit_s=0.05)])
    finally:
        never.set()
    assert done.state == "unknown" and "given up" in done.findings[0].found


def test_secrets_are_hidden_whoever_says_them(tmp_path: Path) -> None:
    given = settings(tmp_path, hf_token="hf_my_very_secret", webhook_secret="quite-another-secret")
    says = Check("a", lambda _: [bad("no hf_my_very_secret here", "try quite-another-secret")])
    (done,) = run_checks(Here(given), [says])
    assert "secret" not in str(done) and "***" in str(done)


def test_without_settings_the_other_checks_say_so_and_go_on() -> None:
    here = Here(SettingsError("The setting 'db' is not valid."))
    by_name = {check.name: check for check in CHECKS}
    names = ["settings", "token", "clock", "database", "port", "runners", "memory", "files"]
    done = {one.name: one for one in run_checks(here, [by_name[name] for name in names])}
    assert done["settings"].state == "bad" and "'db' is not valid" in done["settings"].findings[0].found
    for name in ("token", "clock", "database", "port", "runners"):
        assert done[name].state == "unknown" and "'db' is not valid" in done[name].findings[0].found, name
    assert done["files"].state in ("ok", "warn")


def test_checks_have_names_of_their_own() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_a_runner_that_can_not_be_looked_at_does_not_hide_the_others(tmp_path: Path) -> None:
    here = Here(settings(tmp_path))
    own = {"a": raising, "b": refusing, "c": lambda _: [ok("c: ready")]}
    found = judge_runners(here, ["a", "b", "c", "slurm", "c"], own)
    assert [one.state for one in found] == ["unknown", "warn", "ok", "bad"]
    assert "'slurm'" in found[3].found
    assert judge_runners(here, [], own)[0].state == "bad"


def test_a_ray_cluster_that_does_not_answer_is_bad(tmp_path: Path) -> None:
    here = Here(settings(tmp_path, ray_address="http://127.0.0.1:9"))
    (found,) = judge_runners(here, ["ray"])
    assert found.state == "bad" and "127.0.0.1:9" in found.found and "ray start --head" in found.fix
