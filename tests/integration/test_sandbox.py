"""What a stranger's file could see and do, tried from inside at every level that this machine has."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from core.sandbox import landlock
from core.sandbox.levels import Level
from tests.integration.sandbox_helpers import ALL, HELD, inside, open_folder, require

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
SECRET = "hf_s3cretOfTheParent"


@pytest.fixture
def level(request: pytest.FixtureRequest) -> Level:
    """The level under test, if this machine has it."""
    chosen: Level = request.param
    require(chosen)
    return chosen


held = pytest.mark.parametrize("level", HELD, indirect=True)
at_all_levels = pytest.mark.parametrize("level", ALL, indirect=True)


@held
def test_no_secret_of_the_parent_can_be_read(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as folder:
        home = folder / "home"
        (home / "cache").mkdir(parents=True)
        for place in (home / "cache" / "token", home / "quantcard.toml", home / "quantcard.db", home / ".netrc"):
            place.write_text(SECRET)
            place.chmod(0o600)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setenv("HF_HOME", str(home / "cache"))
        monkeypatch.setenv("QUANTCARD_WEBHOOK_SECRET", SECRET)
        monkeypatch.chdir(home)
        model = home / "model.gguf"
        model.write_text("GGUF")
        found = inside(
            level,
            f"""
import os, glob
found['environment'] = dict(os.environ)
found['own'] = open('/proc/self/environ').read()
seen = []
def look(path):
    try:
        with open(path, 'rb') as file:
            return file.read(1 << 20)
    except OSError:
        return b''
def names_in(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
for root, names, files in os.walk({str(home)!r}):
    seen += [os.path.join(root, name) for name in files]
found['seen'] = seen
places = seen + [{str(home)!r} + name for name in ('/cache/token', '/quantcard.toml', '/quantcard.db', '/.netrc')]
found['read'] = [place for place in places if {SECRET!r}.encode() in look(place)]
found['pids'] = [name for name in names_in('/proc') if name.isdigit()]
found['others'] = [
    path for name in ('environ', 'mem', 'maps', 'cwd', 'root', 'fd') for path in glob.glob('/proc/[0-9]*/' + name)
    if path.split('/')[2] != str(os.getpid()) and {SECRET!r}.encode() in look(path)
]
found['parent'] = {SECRET!r} in look('/proc/{os.getpid()}/environ').decode(errors='replace')
found['model'] = look({str(model)!r}).decode()
""",
            reads=[model],
        )
    assert SECRET not in str(found["environment"]) and SECRET not in found["own"]
    assert not [name for name in found["environment"] if name.startswith(("HF_", "QUANTCARD"))]
    assert found["read"] == [] and found["others"] == [] and not found["parent"]
    assert found["model"] == "GGUF"
    if level == "bubblewrap":
        assert found["seen"] == [str(model)], "nothing else of the home is there"
        assert len(found["pids"]) <= 2, "its own processes only"


@held
def test_it_is_nobody_and_holds_no_right(level: Level) -> None:
    found = inside(
        level,
        """
import os
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines() if ':' in line)
found['uid'], found['groups'] = os.getuid(), os.getgroups()
found['caps'] = [status[name].strip() for name in ('CapInh', 'CapPrm', 'CapEff', 'CapAmb')]
found['locked'] = [status['NoNewPrivs'].strip(), status['Seccomp'].strip()]
found['session'] = os.getsid(0)
found['fds'] = sorted(int(name) for name in os.listdir('/proc/self/fd'))
""",
    )
    assert found["uid"] not in (0, os.getuid()) and set(found["groups"]) <= {65534}
    assert set(found["caps"]) == {"0" * 16} and found["locked"] == ["1", "2"]
    assert found["session"] != os.getsid(0)
    # The fourth is the listing's own.
    assert len(found["fds"]) <= 4 and found["fds"][:3] == [0, 1, 2]


@at_all_levels
def test_system_calls_that_reach_beyond_the_process_fail(level: Level) -> None:
    found = inside(
        level,
        """
import ctypes, errno, os, platform, socket
from core.sandbox.seccomp import denied_calls
libc = ctypes.CDLL(None, use_errno=True)
found['errors'] = {}
for name, number in denied_calls(platform.machine()).items():
    ctypes.set_errno(0)
    libc.syscall(number, 0, 0, 0, 0, 0, 0)
    found['errors'][name] = errno.errorcode.get(ctypes.get_errno())
def refused(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return 'done'
families = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
found['socket'] = [refused(lambda: socket.socket(family)) for family in families]
found['fork'] = refused(os.fork)
found['exec'] = refused(lambda: os.execv('/bin/true', ['true']))
import threading
thread = threading.Thread(target=lambda: found.update(thread='runs'))
thread.start(); thread.join()
open('f', 'w') if os.access('.', os.W_OK) else None
os.chdir(os.environ['HOME'])
open('f', 'w').close()
found['setuid'] = refused(lambda: os.chmod('f', 0o4755))
found['made'] = refused(lambda: os.open('g', os.O_CREAT | os.O_WRONLY, 0o4755))
found['fifo'] = refused(lambda: os.mkfifo('h'))
libc.prctl(1, 0, 0, 0, 0)
signal = ctypes.c_int(0)
libc.prctl(2, ctypes.byref(signal), 0, 0, 0)
found['dies'] = signal.value
""",
    )
    gpu = {"socket", "memfd_create"}
    assert {name for name, error in found["errors"].items() if error != "EPERM"} <= gpu
    assert found["socket"] == ["EPERM"] * 3
    assert found["fork"] == found["exec"] == found["setuid"] == found["made"] == found["fifo"] == "EPERM"
    assert found["thread"] == "runs" and (found["dies"] == 9 or level == "bubblewrap")


@held
def test_it_writes_only_to_its_own_folders(level: Level) -> None:
    if level == "uid" and not landlock.version():
        pytest.skip("this kernel has no Landlock, so world-writable folders stay writable")
    with open_folder() as folder:
        mine, other = folder / "mine", folder / "other"
        for place in (mine, other):
            place.mkdir()
        other.chmod(0o777)
        model = folder / "model.gguf"
        model.write_text("GGUF")
        model.chmod(0o666)
        found = inside(
            level,
            f"""
import os
def writes(path):
    try:
        with open(path, 'a') as file:
            file.write('x')
        return True
    except OSError:
        return False
found['mine'] = writes({str(mine / "out")!r})
found['home'] = writes(os.environ['HOME'] + '/x') and writes(os.environ['TMPDIR'] + '/y')
beyond = [{str(other / "x")!r}, {str(model)!r}, '/x', '/usr/x', '/etc/x', '/dev/x', '/var/tmp/x']
kernel = ['/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/kernel/hostname', '/sys/kernel/x']
found['beyond'] = [path for path in beyond + kernel if writes(path)]
top = []
for name in {sorted(path.name for path in Path("/proc").iterdir() if path.is_file())!r}:
    try:
        os.close(os.open('/proc/' + name, os.O_WRONLY)); top.append(name)
    except OSError:
        pass
found['kernel'] = top
os.symlink('/etc/passwd', {str(mine / "link")!r})
os.mkdir({str(mine / "sub")!r})
os.symlink('../..', {str(mine / "sub" / "up")!r})
""",
            reads=[model],
            writes=[mine],
        )
        assert found == {"mine": True, "home": True, "beyond": [], "kernel": []}
        assert model.read_text() == "GGUF" and not list(other.iterdir())
        assert (mine / "out").read_text() == "x" and (mine / "out").stat().st_uid == os.getuid()


def test_what_a_job_leaves_is_plain_files(tmp_path: Path) -> None:
    from core.sandbox.scratch import make_plain

    outside = tmp_path / "outside"
    outside.write_text("x")
    mine = tmp_path / "mine"
    (mine / "sub").mkdir(parents=True)
    (mine / "link").symlink_to(outside)
    (mine / "sub" / "up").symlink_to("../..")
    os.link(outside, mine / "hard")
    os.mkfifo(mine / "fifo")
    (mine / "good").write_text("g")
    (mine / "good").chmod(0o4755)
    make_plain(mine)
    assert sorted(path.name for path in mine.rglob("*")) == ["good", "sub"]
    assert stat.S_IMODE((mine / "good").stat().st_mode) == 0o755 and outside.read_text() == "x"


@pytest.mark.parametrize("level", ["bubblewrap"], indirect=True)
def test_the_network_and_the_machine_are_not_there(level: Level) -> None:
    found = inside(
        level,
        """
import os
found['routes'] = open('/proc/net/route').read().splitlines()[1:]
found['host'] = os.uname().nodename
found['devices'] = sorted(os.listdir('/dev'))
found['top'] = sorted(os.listdir('/'))
""",
    )
    assert found["routes"] == [] and found["host"] == "sandbox"
    known = {"fd", "full", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero", "core", "console"}
    gpu = ("nvidia", "kfd", "dri", "dxg", "std")
    assert not [name for name in found["devices"] if name not in known and not name.startswith(gpu)]
    assert not {"boot", "run", "srv", "media", "var"} & set(found["top"])
