"""Documentation is tested: every command, option and setting is documented; every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bot.cli import app
from bot.settings import Settings
from core import errors

ROOT = Path(__file__).resolve().parents[2]
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def commands(command: Any, path: tuple[str, ...] = ("quantcard",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf command with its full name."""
    inner = getattr(command, "commands", None)
    if inner:
        for name, sub in inner.items():
            yield from commands(sub, (*path, name))
    else:
        yield path, command


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_is_documented_and_has_help(path: tuple[str, ...]) -> None:
    assert " ".join(path) in CLI
    assert (ALL[path].help or "").strip().endswith((".", "DIR")), "a command's help is a sentence"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_is_documented_and_has_help(path: tuple[str, ...]) -> None:
    for parameter in ALL[path].params:
        names = [name for name in parameter.opts if name.startswith("--")]
        if not names or names[0] == "--help":
            continue
        assert any(name in CLI for name in names), f"{' '.join(path)} {names}"
        assert parameter.help, f"{' '.join(path)} {names} has no help"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_meaning(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    line = next((line for line in SETTINGS.splitlines() if line.startswith(f"| `{name}` |")), None)
    assert line is not None, f"{name} is not in docs/settings.md"
    assert field.description in line, f"docs/settings.md says something else about {name}"


def test_every_exit_code_is_documented() -> None:
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.QuantcardError)
    }
    for code in codes | {0, 130}:
        assert re.search(rf"^\| {code} \|", CLI, re.MULTILINE), code


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_readme_names_what_it_promises() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in readme and re.search(rf"^{target}:", makefile, re.MULTILINE)
    for name in re.findall(r"^quantcard ([a-z]+)", readme, re.MULTILINE):
        assert any(path[1] == name for path in ALL), name


def test_locks_pin_exactly_and_hold_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        for line in (ROOT / name).read_text().splitlines():
            assert re.match(r"^[A-Za-z0-9._-]+(\[[\w,-]+\])?==[^\s]+( ;.*)?$", line), f"{name}: {line}"
            assert "://" not in line
    assert not (ROOT / "uv.lock").exists()
