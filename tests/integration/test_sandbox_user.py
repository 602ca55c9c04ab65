"""The level with a user of its own, also on a machine where Python lies in a home that other users can't enter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.contract import QuantizeResult, QuantizeSpec
from core.sandbox.child import run_child
from core.sandbox.levels import Limits, Sandbox, probe
from core.sandbox.reach import closed_on_the_way
from core.sandbox.spec_paths import reads_of, writes_of
from core.sandbox.users import own_user
from tests.integration.sandbox_helpers import open_folder, require
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
ROOT = Path(__file__).resolve().parents[2]
TESTS = ("test_sandbox.py", "test_sandbox_user.py", "test_sandbox_limits.py")
CHOSEN = "uid and not files and not threads and not time"


def test_where_python_lies_in_a_closed_home_the_level_is_tried_beside_it() -> None:
    """The tests of this level, in a view of this machine in which Python can be reached."""
    if probe("uid") is None or os.geteuid() != 0:
        pytest.skip("they run as they are, or not at all")
    require("bubblewrap")
    closed = closed_on_the_way(sys.executable)
    assert closed is not None
    needed = [path for path in (sys.base_prefix, sys.prefix, str(ROOT)) if Path(path).is_relative_to(closed)]
    if any(closed_on_the_way(path) not in (closed, None) for path in needed):
        pytest.skip("it lies behind more than one closed folder")
    argv = ["bwrap", "--dev-bind", "/", "/", "--perms", "0755", "--tmpfs", closed]
    for path in needed:
        for parent in reversed(Path(path).relative_to(closed).parents[:-1]):
            argv += ["--perms", "0755", "--dir", str(closed / parent)]
        argv += ["--bind", path, path]
    argv += ["--cap-add", "ALL", "--die-with-parent", "--", sys.executable, "-m", "pytest"]
    argv += ["-q", "-p", "no:cacheprovider"]
    argv += ["-k", CHOSEN, *(f"tests/integration/{name}" for name in TESTS)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]


def test_uid_job_makes_a_file_that_is_ours() -> None:
    require("uid")
    with open_folder() as folder:
        tiny_model(folder / "m.gguf", "llama-tied")
        (folder / "mine").mkdir()
        spec = QuantizeSpec(model=str(folder / "m.gguf"), out=str(folder / "mine" / "q.gguf"), file_type="Q8_0")
        found = run_child(
            spec, sandbox=Sandbox("uid"), reads=reads_of(spec), writes=writes_of(spec), limits=Limits(seconds=60)
        )
        assert isinstance(found, QuantizeResult)
        made = folder / "mine" / "q.gguf"
        assert made.stat().st_uid == os.getuid() and (folder / "mine").stat().st_uid == os.getuid()


def test_uid_each_job_has_a_user_of_its_own_and_what_runs_as_it_is_ended(tmp_path: Path) -> None:
    require("uid")
    with own_user([tmp_path]) as first:
        with own_user([]) as second:
            assert first != second and min(first, second) >= 200_000
        left = subprocess.Popen(["sleep", "60"], user=first, group=first, extra_groups=[])
        assert tmp_path.stat().st_uid == first
    assert left.wait(timeout=5) == -9 and tmp_path.stat().st_uid == os.getuid()
