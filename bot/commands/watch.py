"""``quantcard follow``, ``unfollow``, ``follows``: what is watched."""

from __future__ import annotations

from typing import Annotated

import typer

from bot.clock import SystemClock
from bot.commands.common import DbOption, JsonOption, print_json
from bot.intake.requests import without_host
from bot.progress import say
from bot.settings import load_settings
from bot.store import Store
from bot.store.repos import COLLECTION
from bot.tables import out
from core.errors import SettingsError
from core.repo_names import is_owner, is_repo_id

NameArgument = Annotated[
    str, typer.Argument(help="An OWNER, a single OWNER/REPO, or a collection's address (collections/OWNER/TITLE-ID).")
]


def _checked(name: str) -> str:
    """The name as we keep it; an address of the Hub is as good as a name.

    Raises:
        SettingsError: it names nothing that can be followed.
    """
    plain = without_host(name)
    parts = plain.split("/")
    if plain.startswith(COLLECTION) and len(parts) == 3 and is_repo_id("/".join(parts[1:])):
        return plain
    if is_repo_id(plain) or is_owner(plain):
        return plain
    raise SettingsError(
        f"{name!r} is not an owner, a repo or a collection. Write OWNER, OWNER/REPO or collections/OWNER/TITLE-ID."
    )


def follow(
    name: NameArgument,
    consented: Annotated[
        bool, typer.Option("--consented", help="The owner agreed to pulls: no introduction limit.")
    ] = False,
    db: DbOption = None,
) -> None:
    """Watch an owner's GGUF repos, those of a collection, or one repo."""
    name = _checked(name)
    with Store(load_settings(db=db).db) as store:
        store.repos.follow(name, consented=consented, now=SystemClock().now())
    say(f"Following {name}{' (consented)' if consented else ''}.")


def unfollow(name: NameArgument, db: DbOption = None) -> None:
    """Stop watching; what was measured stays."""
    name = _checked(name)
    with Store(load_settings(db=db).db) as store:
        found = store.repos.unfollow(name)
    if not found:
        raise SettingsError(f"{name} is not followed. 'quantcard follows' lists what is.")
    say(f"No longer following {name}.")


def follows(db: DbOption = None, as_json: JsonOption = False) -> None:
    """List what is watched."""
    with Store(load_settings(db=db).db) as store:
        found = store.repos.follows()
    if as_json:
        print_json([{"name": one.name, "kind": one.kind, "consented": one.consented} for one in found])
        return
    for one in found:
        out.print(f"{one.name}{'  (consented)' if one.consented else ''}", markup=False)
    if not found:
        say("Nothing is followed yet. Try 'quantcard follow OWNER'.")
