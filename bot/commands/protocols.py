"""``quantcard protocols``: the protocols that can be chosen, and the one in force."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bot.commands.common import JsonOption, print_json
from bot.protocols import Known, as_toml
from bot.settings import Settings, load_settings
from bot.tables import out
from core.errors import SettingsError
from core.protocol import Protocol

app = typer.Typer(help="Show the protocols: what is measured on, and how.")


def _listed(settings: Settings) -> tuple[list[Known], Protocol]:
    """Every protocol that has a name, the one in force among them though other settings made it."""
    known, in_force = settings.known_protocols(), settings.protocol_in_force()
    found = list(known.values())
    if all(one.protocol != in_force for one in found):
        source = settings.corpus_sources().get(in_force.corpus.sha256)
        found.append(Known(in_force, source, f"{settings.protocol}, changed by other settings"))
    return found, in_force


def _as_json(one: Known, in_force: Protocol) -> dict[str, Any]:
    protocol = one.protocol
    return {
        **{field: getattr(protocol, field) for field in Protocol.model_fields if field != "corpus"},
        "corpus": protocol.corpus.model_dump(),
        "source": one.source.model_dump(exclude_none=True) if one.source else None,
        "fingerprint": protocol.fingerprint,
        "from": one.origin,
        "in_force": protocol == in_force,
    }


@app.callback(invoke_without_command=True)
def protocols(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the protocols: built-in ones, your own, and which is in force (*)."""
    if context.invoked_subcommand is not None:
        return
    found, in_force = _listed(load_settings())
    if as_json:
        print_json([_as_json(one, in_force) for one in found])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("Name", no_wrap=True)
    table.add_column("Corpus")
    table.add_column("n_ctx", justify="right")
    table.add_column("Chunks", justify="right")
    for name in ("Scoring", "Fingerprint", "From"):
        table.add_column(name, no_wrap=True)
    for one in found:
        protocol = one.protocol
        table.add_row(
            "*" if protocol == in_force else "",
            escape(protocol.name),
            escape(protocol.corpus.name),
            str(protocol.n_ctx),
            "all" if protocol.chunks < 0 else str(protocol.chunks),
            protocol.scoring,
            protocol.fingerprint[:12],
            escape(one.origin),
        )
    out.print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A name that 'quantcard protocols' lists.")],
    as_json: JsonOption = False,
) -> None:
    """Show all of one protocol, as the TOML that would define it."""
    found, in_force = _listed(load_settings())
    named = [one for one in found if one.protocol.name == name]
    if not named:
        names = ", ".join(one.protocol.name for one in found)
        raise SettingsError(f"There is no protocol {name!r}, only {names}.")
    one = named[-1]
    if as_json:
        print_json(_as_json(one, in_force))
        return
    sys.stdout.write(f"# fingerprint {one.protocol.fingerprint}\n# from: {one.origin}\n")
    sys.stdout.write(as_toml(one.protocol, one.source))
