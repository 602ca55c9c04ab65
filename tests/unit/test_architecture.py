"""The house: which room may import which, how large a module may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "bot", "jobs", "space", "localhub", "templates")
#: Rooms that each room may import besides itself.
ALLOWED = {
    "core": set(),
    "jobs": {"core"},
    "space": {"core"},
    "localhub": set(),
    "templates": set(),
    "bot": {"core"},
}
#: Wiring: these modules of bot may reach rooms that bot as such may not.
WIRING = {
    "bot/commands/demo.py": {"localhub"},
    "bot/commands/hub.py": {"localhub"},
    "bot/leaderboard.py": {"space"},
    "bot/service.py": {"space"},
}
#: Inside bot, data flows intake -> queue -> publish; store and hub are doors that know none of them.
INSIDE_BOT = {
    "bot/store": {"bot.store"},
    "bot/hub": {"bot.hub"},
    "bot/intake": {"bot.intake", "bot.store", "bot.hub", "bot.clock"},
    "bot/queue": {"bot.queue", "bot.intake", "bot.store", "bot.hub", "bot.clock", "bot.settings"},
    "bot/publish": {"bot.publish", "bot.queue.plan", "bot.intake", "bot.store", "bot.hub", "bot.settings", "bot.clock"},
}
MODULES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    room = relative.split("/")[0]
    may = ALLOWED[room] | WIRING.get(relative, set()) | {room}
    reached = {name.split(".")[0] for name in imported(path)} & set(ROOMS)
    assert reached <= may, f"{relative} reaches {sorted(reached - may)}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "bot")], ids=lambda p: p.name)
def test_data_flows_one_way_inside_the_bot(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    for folder, may in INSIDE_BOT.items():
        if relative.startswith(folder + "/"):
            reached = {name for name in imported(path) if name == "bot" or name.startswith("bot.")}
            beyond = {name for name in reached if not any(name == m or name.startswith(m + ".") for m in may)}
            assert not beyond, f"{relative} reaches {sorted(beyond)}"


def test_core_does_no_network_and_knows_no_client() -> None:
    banned = {"huggingface_hub", "httpx", "httpx2", "requests", "sqlite3", "sqlite_utils", "llama_cpp", "gradio"}
    for path in (ROOT / "core").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & banned, path


def test_only_the_door_talks_to_each_outside_world() -> None:
    doors = {
        "huggingface_hub": ("bot/hub/", "space/"),
        "sqlite_utils": ("bot/store/",),
        "sqlite3": ("bot/store/", "localhub/"),
        "llama_cpp": ("jobs/llama.py",),
    }
    for path in MODULES:
        relative = str(path.relative_to(ROOT))
        for package, may in doors.items():
            if package in {name.split(".")[0] for name in imported(path)}:
                assert relative.startswith(may), f"{relative} imports {package}"


def test_modules_stay_small() -> None:
    long = {str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"split these along the data flow: {long}"


def test_no_path_of_a_machine_stands_in_the_tree() -> None:
    import re
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(rb"(?:^|[^A-Za-z0-9_.])/(?:work|farm|root/\.|opt/pypi)[/ \"]", re.MULTILINE)
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".sh", ".j2", ".lock", ".yml", ".txt") and path.is_file():
            if path.name in ("heldout.txt", "test_architecture.py"):
                continue
            assert not pattern.search(path.read_bytes()), name
