"""``quantcard backup``: copies of the database, made while it is used, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot.clock import SystemClock, iso
from bot.commands.common import DbOption, JsonOption, print_json
from bot.lock import InstanceLock
from bot.progress import say
from bot.settings import Settings, load_settings
from bot.store.backup import back_up_into, backups_in, make_backup, restore_backup
from bot.tables import out
from core.errors import SettingsError

app = typer.Typer(help="Copies of the database: made while it is used, listed, put back.", no_args_is_help=True)


@app.command("create")
def create(
    path: Annotated[
        str, typer.Argument(help="A file, or a folder (or NAME/) in which it is named by the time.", show_default=False)
    ] = "",
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="In a folder: copies that may be there; the oldest go.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take the place of a file that is there.")] = False,
    db: DbOption = None,
) -> None:
    """Copy the database, whole and checked, while others use it; tells where the copy is."""
    settings = load_settings(db=db)
    target = _folder(settings, Path(path) if path else None)
    if not path or path.endswith("/") or target.is_dir():
        made = back_up_into(target, settings.db, now=SystemClock().now(), keep=keep)
    elif keep is not None:
        raise SettingsError(f"--keep is for a folder, and {target} is none. Make it first, or end its name with '/'.")
    else:
        make_backup(settings.db, target, force=force)
        made = target
    out.print(str(made), markup=False)
    say(f"Copied {settings.db}: {_megabytes(made.stat().st_size)}, checked.")


@app.command("list")
def list_backups(
    folder: Annotated[
        Path | None, typer.Argument(help="Where the copies are (QUANTCARD_BACKUP_DIR).", show_default=False)
    ] = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a folder's copies of the database, the oldest first."""
    settings = load_settings(db=db)
    where = _folder(settings, folder)
    if not where.is_dir():
        raise SettingsError(f"There is no folder {where}.")
    found = backups_in(where, settings.db.stem)
    if as_json:
        print_json(
            [
                {"path": str(one.path), "bytes": one.size_bytes, "made_at": one.made_at, "problem": one.problem}
                for one in found
            ]
        )
        return
    for one in found:
        problem = f"  {one.problem}" if one.problem else ""
        out.print(f"{iso(one.made_at)}  {_megabytes(one.size_bytes):>9}  {one.path}{problem}", markup=False)
    if not found:
        say(f"{where} holds no copies of {settings.db.name}.")


@app.command("restore")
def restore(
    path: Annotated[Path, typer.Argument(help="The copy.", show_default=False)],
    db: DbOption = None,
) -> None:
    """Put a copy in the database's place; what was there is kept beside it. Not while 'serve' runs."""
    settings = load_settings(db=db)
    now = SystemClock().now()
    with InstanceLock(settings.db, now=now):
        kept = restore_backup(path, settings.db, now=now)
    if kept:
        out.print(str(kept), markup=False)
        say(f"Restored {settings.db} from {path}; what was there is kept as {kept.name}.")
    else:
        say(f"Restored {settings.db} from {path}.")


def _folder(settings: Settings, given: Path | None) -> Path:
    found = given or settings.backup_dir
    if found is None:
        raise SettingsError("Where? Name a path, or set QUANTCARD_BACKUP_DIR.")
    return found


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
