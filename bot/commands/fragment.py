"""``quantcard fragment``: what an uploader's own script puts into a README."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bot.commands.common import DbOption
from bot.publish.badge import find_variant
from bot.publish.fragments import badge, figures, links_of, repo_rows, section, told
from bot.settings import load_settings
from bot.store import Store
from core.errors import SettingsError

FORMATS = ("section", "json", "badge")


def fragment(
    repo: Annotated[str, typer.Argument(help="OWNER/REPO.")],
    format_: Annotated[str, typer.Option("--format", help="section (Markdown), json or badge (SVG).")] = "section",
    variant: Annotated[str | None, typer.Option("--variant", help="With badge: of this label or file.")] = None,
    markers: Annotated[
        bool, typer.Option("--markers/--no-markers", help="With section: between the bot's comments, or without.")
    ] = True,
    db: DbOption = None,
) -> None:
    """Print a repo's section, figures or badge from what is measured, for a README that a script builds."""
    if format_ not in FORMATS:
        raise typer.BadParameter(f"{format_!r} is not one of {', '.join(FORMATS)}.", param_hint="--format")
    if variant is not None and format_ != "badge":
        raise typer.BadParameter("Only a badge can be of one variant.", param_hint="--variant")
    settings = load_settings(db=db)
    with Store(settings.db) as store:
        found = repo_rows(store, settings, settings.protocol_in_force(), repo)
    if found is None or not told(found.rows):
        raise SettingsError(
            f"Nothing is measured in {repo} yet. Run 'quantcard follow {repo}' and 'quantcard run --once'."
        )
    if variant is not None and find_variant(found.rows, variant) is None:
        names = ", ".join(row.label for row in found.rows)
        raise SettingsError(f"{repo} has no variant {variant!r}, or several; it has {names[:300]}.")
    match format_:
        case "json":
            content = figures(found.rows, config=found.config)
        case "badge":
            content = badge(found.rows, variant)
        case _:
            content = section(found.rows, links_of(settings), config=found.config, markers=markers).encode()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
