"""The parent inside a job elsewhere: it checks, measures in a sandbox, and says nothing but framed lines."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import jobs.remote
from core.contract import BaselineResult, ErrorEvent, ProgressEvent, ResultEvent, SpeedSpec
from core.errors import JobProtocolError, StorageError
from core.frame import Ended, read_line
from core.remote_task import VARIABLE, InputFile, OutputFolder, RemoteTask, TaskLimits, packed
from core.sandbox.levels import Level, best_sandbox, probe
from tests.integration.remote_tasks import ONE_THREAD, Files, wait_for

NONCE = "5ec7e7" * 5 + "00"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("remote"))


def task_of(files: Files, folder: Path, *, long: bool = False, to: Path | None = None) -> RemoteTask:
    task = files.task(long=long)
    spec = task.spec.model_copy(update={"out": str(folder / "out" / "b.gguf"), "format": "states"})
    (file,) = task.model.files
    return RemoteTask(
        nonce=NONCE,
        spec=spec,
        model_files=[InputFile(path=str(files.model), size=file.size, sha256=str(file.sha256))],
        outputs=OutputFolder(path=str(folder / "out"), to=str(to) if to else None),
        end=str(folder / "end"),
        limits=TaskLimits(seconds=100),
    )


def start(text: str, *, code: str | None = None, **more: str) -> subprocess.Popen[str]:
    run = ["-c", code] if code else ["-m", "jobs.remote"]
    return subprocess.Popen(
        [sys.executable, "-P", *run],
        env={**os.environ, VARIABLE: text, "A_SECRET": f"token-{NONCE}", **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of(out: str) -> tuple[list[ProgressEvent], Ended]:
    """The steps and the end; fails where anything else was printed."""
    events = [read_line(line, NONCE) for line in out.splitlines()]
    *steps, end = events
    assert isinstance(end, Ended) and all(isinstance(step, ProgressEvent) for step in steps), out
    return [step for step in steps if isinstance(step, ProgressEvent)], end


def run(task: RemoteTask) -> tuple[int, list[ProgressEvent], Ended]:
    process = start(packed(task))
    out, err = process.communicate(timeout=100)
    assert out, err
    return process.returncode, *lines_of(out)


def error_of(task: RemoteTask) -> ErrorEvent:
    code, _, end = run(task)
    assert code != 0 and isinstance(end.event, ErrorEvent)
    return end.event


def test_a_result_comes_framed_with_its_files_copied_and_told(files: Files, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    code, steps, end = run(task_of(files, tmp_path, to=bucket))
    assert code == 0 and isinstance(end.event, ResultEvent)
    result = end.event.result
    assert isinstance(result, BaselineResult) and result.n_chunks == 2 and result.format == "states"
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages[:2] == ["fetching", "measuring"] and stages[-1] == "uploading"
    told = {output.path: output for output in end.outputs}
    assert sorted(told) == sorted(path.name for path in bucket.iterdir()) and told["b.gguf"].sha256 == result.sha256
    for path in bucket.iterdir():
        data = path.read_bytes()
        assert (told[path.name].size, told[path.name].sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert read_line((tmp_path / "end").read_text(), NONCE) == end


def test_files_that_stay_where_they_are_are_told_too(files: Files, tmp_path: Path) -> None:
    _, _, end = run(task_of(files, tmp_path))
    assert {output.path for output in end.outputs} == {path.name for path in (tmp_path / "out").iterdir()}


def test_a_model_that_is_not_the_hubs_is_not_measured(files: Files, tmp_path: Path) -> None:
    task = task_of(files, tmp_path)
    (file,) = task.model_files
    for changed, kind, says in (
        (file.model_copy(update={"sha256": "0" * 64}), "MachineLostError", "other bytes"),
        (file.model_copy(update={"size": file.size + 1}), "MachineLostError", "did not arrive whole"),
        (file.model_copy(update={"path": f"{file.path}.gone"}), "RunnerUnavailableError", "can't be read"),
        (file.model_copy(update={"path": str(tmp_path)}), "MachineLostError", "did not arrive whole"),
    ):
        error = error_of(task.model_copy(update={"model_files": [changed]}))
        assert error.type == kind and says in error.message
    assert not (tmp_path / "out").exists()


def test_the_jobs_own_error_crosses(files: Files, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(400))
    task = task_of(files, tmp_path).model_copy(update={"model_files": [], "spec": SpeedSpec(model=str(broken))})
    assert error_of(task).type == "GGUFError"


def test_no_task_is_said_on_stderr_alone() -> None:
    process = start("nonsense")
    out, err = process.communicate(timeout=60)
    assert process.returncode == JobProtocolError.exit_code and out == "" and "holds no task" in err


@pytest.fixture
def measuring(files: Files, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job of minutes that has begun to measure."""
    process = start(packed(task_of(files, tmp_path, long=True)))
    assert process.stdout is not None
    for line in process.stdout:
        event = read_line(line, NONCE)
        if isinstance(event, ProgressEvent) and event.stage == "recording" and event.done > 0:
            break
    yield process
    process.kill()
    process.communicate(timeout=20)


def test_told_to_end_it_ends_at_once_with_a_frame_and_no_child(measuring: subprocess.Popen[str]) -> None:
    children = below(measuring.pid)
    assert children
    told = time.monotonic()
    measuring.send_signal(signal.SIGTERM)
    out, _ = measuring.communicate(timeout=20)
    assert time.monotonic() - told < 5 and measuring.returncode == 143
    _, end = lines_of(out)
    assert isinstance(end.event, ErrorEvent) and end.event.type == "MachineLostError"
    assert not alive(children)


def test_killed_it_leaves_no_child(measuring: subprocess.Popen[str]) -> None:
    children = below(measuring.pid)
    assert children
    measuring.kill()
    wait_for(lambda: not alive(children))


def test_when_nobody_reads_its_log_any_more_it_ends(measuring: subprocess.Popen[str]) -> None:
    children = below(measuring.pid)
    assert measuring.stdout is not None
    measuring.stdout.close()
    measuring.wait(timeout=20)
    assert not alive(children)
    measuring.stdout = None


#: In place of the measuring process: looks everywhere for what only its parent may know.
SPY = """
    import glob, hashlib, json, os, re, sys, time
    until = time.monotonic() + 4
    wanted, found = json.load(sys.stdin)["model"].split("-")[-1][:64], []
    places = [*glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline"), "/proc/1/environ"]
    # Not of all: the test that runs us knows it too.
    for pid in (os.getppid(), 1):
        places += [f"/proc/{pid}/mem", *glob.glob(f"/proc/{pid}/fd/*"), *glob.glob(f"/proc/{pid}/task/*/environ")]
    def look(name, data):
        for word in re.findall(rb"(?=([0-9a-f]{32}))", data):
            if hashlib.sha256(word).hexdigest() == wanted:
                found.append(name)
        if b"QUANTCARD_" + b"TASK=" in data:
            found.append(name)
    look("environment", repr(dict(os.environ)).encode())
    for fd in range(3, 64):
        try:
            look(f"fd {fd}", os.pread(fd, 1 << 20, 0))
        except OSError:
            pass
    for name in places:
        if time.monotonic() > until:
            break
        try:
            if name.endswith("/mem"):
                with open(name.replace("/mem", "/maps")) as maps, open(name, "rb", 0) as mem:
                    for line in maps:
                        low, high = (int(part, 16) for part in line.split()[0].split("-"))
                        if "r" in line.split()[1] and high - low < 1 << 24 and time.monotonic() < until:
                            mem.seek(low)
                            look(name, mem.read(high - low))
            elif not os.path.isdir(name) and "/fd/" not in name or os.path.isfile(name):
                with open(name, "rb") as file:
                    look(name, file.read(1 << 20))
        except (OSError, ValueError, OverflowError):
            pass
    said = f"found {sorted(set(found))}; {os.environ.get('A_SECRET')}"
    print(json.dumps({"event": "error", "type": "JobError", "message": said}), flush=True)
    sys.exit(5)
"""
#: The parent, with another child and one level of the sandbox.
WITH_SPY = """
    import sys
    import core.sandbox.child as child
    import jobs.remote
    from core.sandbox.levels import Sandbox
    from pathlib import Path
    real, folder, level = child.launched, Path(sys.argv[0] or "."), {level!r}
    def launched(level, module, *, reads, **given):
        return real(level, ["spy"], reads=[*reads, Path({folder!r})], **given)
    child.launched = launched
    jobs.remote.best_sandbox = lambda **_: Sandbox({level!r})
    sys.exit(jobs.remote.main())
"""


@pytest.mark.parametrize("level", ["bubblewrap", "uid", "none"])
def test_what_reads_the_model_never_learns_the_nonce(level: Level, tmp_path_factory: pytest.TempPathFactory) -> None:
    if level == "none" and os.getuid() == 0:
        pytest.skip("root sees everything where nothing holds it")
    if level != "none" and (why := probe(level)):
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("spy")
    for parent in [folder, *folder.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    (folder / "spy.py").write_text(textwrap.dedent(SPY))
    (folder / f"m-{hashlib.sha256(NONCE.encode()).hexdigest()}.gguf").write_bytes(b"x")
    spec = SpeedSpec(model=str(next(folder.glob("m-*"))), machine=ONE_THREAD)
    task = RemoteTask(nonce=NONCE, spec=spec, limits=TaskLimits(seconds=60), unsafe=level == "none")
    code = textwrap.dedent(WITH_SPY.format(folder=str(folder), level=level))
    process = start(packed(task), code=code, PYTHONPATH=f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    out, err = process.communicate(timeout=60)
    _, end = lines_of(out)
    assert isinstance(end.event, ErrorEvent) and end.event.message == "found []; None", (end, err)


def test_the_spy_finds_what_is_there_to_be_found(tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(textwrap.dedent(SPY))
    spec = json.dumps({"model": f"m-{hashlib.sha256(NONCE.encode()).hexdigest()}.gguf"})
    done = subprocess.run(
        [sys.executable, tmp_path / "spy.py"], input=spec, env={**os.environ, "A_SECRET": NONCE}, text=True,
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert "environment" in json.loads(done.stdout)["message"], done


def test_links_hidden_files_and_folders_are_not_handed_over(tmp_path: Path) -> None:
    source, to = tmp_path / "out", tmp_path / "to"
    source.mkdir()
    (source / "a.parquet").write_bytes(b"abc")
    (source / ".a.part").write_bytes(b"half")
    (source / "link").symlink_to("/etc/hostname")
    (source / "folder").mkdir()
    os.mkfifo(source / "pipe")
    stop = jobs.remote._Stop()
    outputs = jobs.remote.hand_over(OutputFolder(path=str(source), to=str(to)), stop, lambda event: None)
    assert [(output.path, output.size) for output in outputs] == [("a.parquet", 3)]
    assert [path.name for path in to.iterdir()] == ["a.parquet"] and (to / "a.parquet").read_bytes() == b"abc"
    with pytest.raises(StorageError):
        jobs.remote.hand_over(OutputFolder(path=str(tmp_path / "gone")), stop, lambda event: None)
    for i in range(101):
        (source / f"f{i}").touch()
    with pytest.raises(JobProtocolError, match="more than any of ours"):
        jobs.remote.hand_over(OutputFolder(path=str(source)), stop, lambda event: None)


def test_steps_come_at_most_once_a_second_and_less_often_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], []
    monkeypatch.setattr(jobs.remote.time, "monotonic", lambda: now[0])
    teller = jobs.remote._Teller(-1, jobs.remote._Stop())
    monkeypatch.setattr(teller, "line", lambda text: told.append(now[0]))
    for tick in range(6 * 3600 * 4):
        now[0] = tick / 4
        teller.progress(ProgressEvent(stage="measuring", done=tick, total=9))
    early = [at for at in told if at < 60]
    assert len(early) == 60 and all(b - a >= 1 for a, b in pairwise(told))
    assert len(told) < 2500 and told[-1] > 6 * 3600 - 16
    # A child that changes its stage with every word is told no oftener than that, but for the first few.
    told.clear()
    for tick in range(4000):
        now[0] += 0.01
        teller.progress(ProgressEvent(stage=f"s{tick}", done=tick, total=9))
    assert len(told) <= 40 + 11


def below(pid: int) -> list[int]:
    """All processes below one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def alive(pids: list[int]) -> list[int]:
    """Those that still run."""

    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return "X"

    return [pid for pid in pids if state(pid) not in "XZ"]


def test_without_a_sandbox_nothing_of_a_stranger_is_read(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.sandbox.levels.probe", lambda level: f"{level}: not here")
    with pytest.raises(Exception, match="nothing would hold it"):
        best_sandbox()
    task = task_of(files, tmp_path)
    teller = jobs.remote._Teller(os.open(os.devnull, os.O_WRONLY), jobs.remote._Stop())
    _, event, _ = jobs.remote._end(task, jobs.remote._Stop(), teller)
    assert isinstance(event, ErrorEvent) and event.type == "RunnerUnavailableError"
    assert "nothing would hold it" in event.message
