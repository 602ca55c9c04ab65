"""``quantcard doctor``: looks for what would go wrong, and says how it is put right."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.markup import escape

from bot.commands.common import DbOption, JsonOption, print_json
from bot.doctor.checks import CHECKS, Check, Checked, run_checks
from bot.doctor.finding import Finding, worst
from bot.doctor.here import Here
from bot.progress import say
from bot.settings import Settings, load_settings
from bot.tables import out
from core.errors import SettingsError

#: The exit code where something is bad, or could not be found out.
NOT_WELL = 1
_MARKS = {
    "ok": "[green]ok     [/]",
    "warn": "[yellow]warn   [/]",
    "bad": "[red]bad    [/]",
    "unknown": "[magenta]unknown[/]",
}
_NAMES = ", ".join(check.name for check in CHECKS)


def doctor(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help=f"One check (may be given again): {_NAMES}.")
    ] = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what would go wrong here, each with its cure in a sentence; exit code 1 if something is bad."""
    checks = _chosen(only or [])
    here = Here(_settings(db=db))
    done: list[Checked] = []
    for checked in run_checks(here, checks):
        done.append(checked)
        if not as_json:
            _show(checked)
    state = worst(one.state for one in done)
    if as_json:
        print_json({"state": state, "checks": [as_dict(one) for one in done]})
    say(_summary(done))
    if state in ("bad", "unknown"):
        raise typer.Exit(NOT_WELL)


def _chosen(names: list[str]) -> list[Check]:
    known = {check.name for check in CHECKS}
    if wrong := [name for name in names if name not in known]:
        raise typer.BadParameter(f"There is no check {wrong[0]!r}, only {_NAMES}.", param_hint="--only")
    return [check for check in CHECKS if not names or check.name in names]


def _settings(**flags: Any) -> Settings | SettingsError:
    try:
        return load_settings(**flags)
    except SettingsError as error:
        return error


def as_dict(checked: Checked) -> dict[str, Any]:
    """A check as JSON has it."""
    findings = [{"state": one.state, "found": one.found, "fix": one.fix} for one in checked.findings]
    return {"name": checked.name, "state": checked.state, "seconds": round(checked.seconds, 2), "findings": findings}


def _show(checked: Checked) -> None:
    width = max(len(check.name) for check in CHECKS)
    for place, finding in enumerate(checked.findings):
        for line in lines(checked.name.ljust(width) if place == 0 else " " * width, finding):
            out.print(line)
    sys.stdout.flush()


def lines(name: str, finding: Finding) -> Iterable[str]:
    """A finding as lines of rich's markup."""
    yield f"{_MARKS[finding.state]}  {escape(name)}  {escape(finding.found)}"
    if finding.fix:
        yield f"{' ' * 7}  {' ' * len(name)}  → {escape(finding.fix)}"


def _summary(done: list[Checked]) -> str:
    counts = {state: sum(one.state == state for one in done) for state in ("ok", "warn", "bad", "unknown")}
    words = {"ok": "ok", "warn": "with a warning", "bad": "bad", "unknown": "unknown"}
    listed = ", ".join(f"{n} {words[state]}" for state, n in counts.items() if n)
    return f"{len(done)} checks in {sum(one.seconds for one in done):.1f} s: {listed}."
