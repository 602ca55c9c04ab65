"""What becomes of a process that takes or says too much, dies, or will not end; and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.contract import ProgressEvent, SpeedSpec
from core.errors import GGUFError, JobError, JobProtocolError, MeasurementDiedError, SandboxError
from core.sandbox import child, levels, scratch, watch
from core.sandbox.child import JobStopped, run_launched
from core.sandbox.levels import Level, Limits, best_sandbox
from core.sandbox.watch import descendants
from tests.integration.sandbox_helpers import ALL, launch_of, open_folder, require

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
SPEC = SpeedSpec(model="m.gguf")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=ALL)
def level(request: pytest.FixtureRequest) -> Level:
    """The level under test, if this machine has it."""
    chosen: Level = request.param
    require(chosen)
    return chosen


def end_of(
    level: Level,
    code: str,
    *,
    stop: threading.Event | None = None,
    told: list[ProgressEvent] | None = None,
    writes: Sequence[Path] = (),
    **limits: float,
) -> Exception:
    """How a job ends that is this code; that nothing of it is left is seen to."""
    given = Limits(**({"seconds": 30} | limits))  # type: ignore[arg-type]
    before = set(descendants(os.getpid()))
    # Past timeit's own handling of what is thrown.
    with launch_of(level, code, limits=given, writes=writes) as (launch, folder):
        on_progress = told.append if told is not None else None
        with pytest.raises((JobError, GGUFError, JobStopped)) as caught:
            run_launched(launch, SPEC, [folder, *writes], given, on_progress, stop)
        assert set(descendants(os.getpid())) <= before, "its processes are gone when we are told of its end"
    assert not folder.exists() and not folder.with_name(folder.name + ".lock").exists()
    return caught.value


def test_memory(level: Level) -> None:
    code = "found = []\nwhile True: found.append(bytes(1 << 20) + b'x')"
    error = end_of(level, code, memory_bytes=200_000_000)
    assert isinstance(error, MeasurementDiedError) and "it took more memory than 0.2 GB" in str(error)


def test_time_for_one_that_hears_no_signal(level: Level) -> None:
    code = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True: pass
"""
    started = time.monotonic()
    error = end_of(level, code, seconds=1)
    assert isinstance(error, MeasurementDiedError) and "it took longer than 1 s" in str(error)
    assert time.monotonic() - started < 10


def test_a_stop_ends_it(level: Level) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    assert isinstance(end_of(level, "while True: pass", stop=stop), JobStopped)


def test_files(level: Level) -> None:
    code = """
import os, itertools, time
for n in itertools.count():
    with open(os.environ['HOME'] + f'/{n}', 'wb') as file:
        file.write(b'x' * 900_000)
    time.sleep(0.001)
"""
    error = end_of(level, code, output_bytes=20_000_000)
    assert isinstance(error, MeasurementDiedError) and "it wrote more than 0.02 GB" in str(error)


def test_one_large_file(level: Level) -> None:
    code = "import os\nwith open(os.environ['HOME'] + '/x', 'wb') as file:\n    file.truncate(50_000_000)"
    error = end_of(level, code, output_bytes=20_000_000)
    assert isinstance(error, JobProtocolError) and "File too large" in str(error)


def test_many_files(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_MOST_FILES", 500)
    code = """
import os, time
for n in range(1000):
    os.mkdir(os.environ['HOME'] + f'/{n}')
time.sleep(30)
"""
    error = end_of(level, code)
    assert isinstance(error, MeasurementDiedError) and "it made more than 500 files" in str(error)


def test_threads(level: Level) -> None:
    code = """
import threading, time
for _ in range(300):
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
time.sleep(30)
"""
    error = end_of(level, code, threads=100)
    # Where the user is the job's own, the kernel counts and no thread too many is begun.
    assert "it started more than 100 threads" in str(error) or "can't start new thread" in str(error)


def test_a_flood_of_words(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_MAX_SAID", 4 << 20)
    error = end_of(level, "while True: print('x' * 100_000)")
    assert isinstance(error, MeasurementDiedError) and "it said more than 4 MB" in str(error)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGFPE"])
def test_signals_are_named(name: str) -> None:
    code = f"""
import os, signal, sys
print('GGML_ASSERT(x) failed', file=sys.stderr, flush=True)
signal.signal(signal.{name}, signal.SIG_DFL)
os.kill(os.getpid(), signal.{name})
"""
    held = best_sandbox(unsafe=True).level
    error = end_of(held, code)
    assert isinstance(error, MeasurementDiedError) and error.retryable
    assert f"died: {name}" in str(error) and "GGML_ASSERT(x) failed" in str(error)


def test_a_kill_that_is_not_ours_is_told_as_such(level: Level) -> None:
    error = end_of(level, "import os\nos.kill(os.getpid(), 9)")
    assert isinstance(error, MeasurementDiedError)
    assert "died: SIGKILL (not by us: out of memory?)" in str(error) or "the kernel ended it" in str(error)


def test_nonsense_is_no_result_and_progress_is_bounded() -> None:
    code = r"""
import sys
for line in ['[' * 100_000, '{"event":"result"}', 'null', '"x"', '\x1b[2J',
             '{"event":"progress","stage":"a","done":1e99,"total":1}',
             '{"event":"progress","stage":"' + 'x' * 5000 + '\\u001b[31m","done":%d,"total":-5}' % 10**30,
             '{"event":"progress","stage":"\\u001b[31m\\nred","done":1,"total":2}']:
    print(line, flush=True)
sys.stdout.buffer.write(b'\xff\xfe' * 100 + b'\n')
"""
    told: list[ProgressEvent] = []
    error = end_of(best_sandbox(unsafe=True).level, code, told=told)
    assert isinstance(error, JobProtocolError) and "no result" in str(error)
    assert all(len(event.stage) <= 100 and event.stage.isprintable() and event.total >= 0 for event in told)
    assert told[-1].stage == " [31m red"


def test_a_flood_of_progress_is_thinned_out() -> None:
    line = '{"event":"progress","stage":"a","done":1,"total":2}'
    told: list[ProgressEvent] = []
    started = time.monotonic()
    end_of(best_sandbox(unsafe=True).level, f"for _ in range(20_000): print({line!r})", told=told)
    assert 1 <= len(told) <= 60 + 60 * (time.monotonic() - started)


def test_a_result_counts_only_with_a_good_end() -> None:
    line = '{"event":"result","result":{"kind":"quantize","path":"x","file_type":"Q8_0","size_bytes":1}}'
    code = f"print({line!r}, flush=True)\nimport os\nos._exit(3)"
    assert "ended with code 3" in str(end_of(best_sandbox(unsafe=True).level, code))


def test_an_error_of_its_own_is_rebuilt_and_cut() -> None:
    line = '{"event":"error","type":"GGUFError","message":"' + "\\u001b[1mbad " * 1000 + '"}'
    error = end_of(best_sandbox(unsafe=True).level, f"print({line!r}, flush=True)\nimport os\nos._exit(3)")
    assert type(error) is GGUFError and len(str(error)) <= 500 and str(error).isprintable()


PARENT = """
import sys, tempfile
from pathlib import Path
from core.contract import SpeedSpec
from core.sandbox.child import run_child
from core.sandbox.levels import Limits, Sandbox
print('ready', flush=True)
spec = SpeedSpec(model=sys.argv[2], repetitions=10**6)
run_child(spec, sandbox=Sandbox(sys.argv[1]), reads=[Path(sys.argv[2])], writes=[], limits=Limits(seconds=600),
          on_progress=lambda event: print(event.stage, flush=True))
"""


def test_a_parent_that_is_killed_leaves_no_process_and_its_folder_is_swept(level: Level, demo_model: Path) -> None:
    with open_folder() as folder:
        environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, level, str(demo_model)], stdout=subprocess.PIPE, env=environment, text=True
        )
        assert parent.stdout is not None
        with parent:
            assert parent.stdout.readline() == "ready\n"
            # It is measuring.
            assert parent.stdout.readline()
            below = descendants(parent.pid)
            assert below
            parent.send_signal(signal.SIGKILL)
        until = time.monotonic() + 10
        while any(_alive(pid) for pid in below) and time.monotonic() < until:
            time.sleep(0.02)
        assert not [pid for pid in below if _alive(pid)]
        assert [path for path in folder.iterdir() if path.is_dir()], "what a kill leaves"
        scratch.sweep(str(folder))
        assert list(folder.iterdir()) == []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_folder_in_use_is_never_swept() -> None:
    with scratch.scratch_folder() as folder:
        (folder / "x").touch()
        assert folder.parent == Path(tempfile.gettempdir())
        scratch.sweep()
        assert (folder / "x").exists()


def test_with_nothing_to_hold_it_a_strangers_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "_probed", lambda level: f"{level} is not here")
    with pytest.raises(SandboxError, match=r"bubblewrap is not here; uid is not here.*--unsafe-no-sandbox"):
        best_sandbox()
    found = best_sandbox(unsafe=True)
    assert found.level == "none" and "bubblewrap is not here" in found.why
    with pytest.raises(SandboxError, match="uid is not here"):
        best_sandbox(wanted="uid")


def test_a_sandbox_that_can_not_be_set_up_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("bubblewrap")
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("core.sandbox.launch.bubblewrap", lambda: str(broken))
    error = end_of("bubblewrap", "print('never')")
    assert isinstance(error, SandboxError) and "setting up uid map" in str(error)
