"""Which files a job is shown: from its spec, from Python and the system, and never a folder that holds secrets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bot.queue.runners.here import capacity_here
from core.contract import BaselineSpec, BaselineToolSpec, QualityManySpec, QualitySpec, QuantizeSpec, SpeedSpec
from core.sandbox import reach
from core.sandbox.inside import Config
from core.sandbox.levels import Limits, Sandbox
from core.sandbox.spec_paths import outputs_of, reads_of, with_outputs, writes_of
from core.sandbox.watch import gigabytes

ROOT = Path(__file__).resolve().parents[2]


def names(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


def test_a_split_model_is_all_its_shards() -> None:
    first = "/m/big-00001-of-00003.gguf"
    wanted = [f"/m/big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert names(reads_of(SpeedSpec(model=first))) == wanted
    assert names(reads_of(BaselineSpec(reference=first, corpus="/c/t.txt", out="/o/b.gguf"))) == [*wanted, "/c/t.txt"]


def test_a_baseline_comes_with_what_stands_beside_it(tmp_path: Path) -> None:
    for name in ("b.gguf", "b.gguf.json", "head-0123.gguf", "quantcard.toml", "quantcard.db"):
        (tmp_path / name).touch()
    spec = QualitySpec(model="/m/x.gguf", baseline=str(tmp_path / "b.gguf"))
    assert {path.name for path in reads_of(spec)} == {"x.gguf", "b.gguf", "b.gguf.json", "head-0123.gguf"}
    many = QualityManySpec(models=["/m/x.gguf", "/n/y.gguf"], baseline=str(tmp_path / "b.gguf"))
    assert {path.name for path in reads_of(many)} >= {"x.gguf", "y.gguf", "b.gguf"}
    tool = BaselineToolSpec(action="import", path="/b/f.kld", out="/o/f.kld", reference="/m/x.gguf")
    assert names(reads_of(tool)) == ["/b/f.kld", "/b/f.kld.json", "/m/x.gguf"]


def test_outputs_can_be_put_elsewhere() -> None:
    spec = QualitySpec(model="m.gguf", baseline="b.gguf", tokens_out="/t/t.parquet", checkpoint="/c/c.checkpoint")
    assert names(writes_of(spec)) == ["/c", "/t"]
    moved = with_outputs(spec, {"/t/t.parquet": "/x/t.parquet", "/c/c.checkpoint": "/y/c.checkpoint"})
    assert isinstance(moved, QualitySpec)
    assert (moved.tokens_out, moved.checkpoint, moved.model) == ("/x/t.parquet", "/y/c.checkpoint", "m.gguf")
    many = QualityManySpec(models=["a.gguf", "b.gguf"], baseline="b.gguf", tokens_out=["/t/a", "/t/b"])
    assert names(outputs_of(many)) == ["/t/a", "/t/b"]
    again = with_outputs(many, {"/t/a": "/x/a"})
    assert isinstance(again, QualityManySpec) and again.tokens_out == ["/x/a", "/t/b"]
    assert writes_of(SpeedSpec(model="m.gguf")) == []
    assert names(writes_of(QuantizeSpec(model="m.gguf", out="/o/q.gguf", file_type="Q8_0"))) == ["/o"]


def test_only_our_two_packages_are_shown_of_a_checkout() -> None:
    seen = reach.system_paths()
    assert any(Path(path).name == "core" for path in seen) and any(Path(path).name == "jobs" for path in seen)
    home = Path.home()
    for secret in (home, ROOT, ROOT / ".git", ROOT / "bot", ROOT / "quantcard.toml", Path("/etc/passwd"), Path("/")):
        assert not any(Path(path) == secret or Path(path) in secret.parents for path in seen), secret
    assert any(Path(sys.executable).is_relative_to(path) for path in seen)


def test_library_folders_from_the_environment_never_hold_a_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "people" / "me"
    (home / "lib").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{home}:{tmp_path}:/:{home / 'lib'}:relative:")
    seen = reach.system_paths()
    assert str(home / "lib") in seen
    assert not {str(home), str(tmp_path), "/", "relative", ""} & set(seen)


def test_paths_below_others_are_left_out() -> None:
    assert reach.outermost(["/usr/lib/x", "/usr", "/usrlocal", "/a/b/../c", "/a/c/d"]) == ["/usr", "/usrlocal", "/a/c"]


def test_the_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_TOKEN",
        "QUANTCARD_TASK",
        "AWS_SECRET_ACCESS_KEY",
        "LD_PRELOAD",
        "XDG_CACHE_HOME",
        "SSH_AUTH_SOCK",
    ):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = reach.scrubbed_environment("/h")
    assert "s3cret" not in found.values() and found["CUDA_VISIBLE_DEVICES"] == "0" and found["HOME"] == "/h"


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_where_another_user_is_stopped(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "m.gguf").touch(mode=0o644)
    stopped = reach.closed_on_the_way(str(closed / "m.gguf"))
    # pytest's own folder may be closed too, further up.
    assert stopped is not None and Path(stopped) in [closed, *closed.parents]
    assert reach.unreadable("/usr") is None


def test_a_config_survives_the_command_line() -> None:
    import json

    config = Config(parent=7, file_bytes=1 << 40, must_filter=True, reads=("/a b", '"'), writes=())
    assert Config(**json.loads(config.dumps())).file_bytes == 1 << 40
    assert tuple(json.loads(config.dumps())["reads"]) == ("/a b", '"')


def test_only_a_real_sandbox_holds_strangers() -> None:
    assert Sandbox("bubblewrap").holds_strangers and Sandbox("uid").holds_strangers
    assert not Sandbox("none").holds_strangers
    assert Limits(seconds=1).memory_bytes is None


def test_this_machine_has_memory_and_disk(tmp_path: Path) -> None:
    found = capacity_here(tmp_path / "not" / "there")
    assert found.disk is not None and found.disk > 0
    if sys.platform == "linux":
        assert found.memory is not None and found.memory > 1 << 26


def test_sizes_are_said_as_people_say_them() -> None:
    assert [gigabytes(n) for n in (64_000_000, 24_000_000_000)] == ["0.064 GB", "24 GB"]
