"""The ``quantcard`` command: its map, and how errors end. The commands themselves are in bot/commands/."""

from __future__ import annotations

import sys

import typer

from bot.commands import (
    backup,
    baseline,
    card,
    compare,
    demo,
    disputes,
    doctor,
    hub,
    imports,
    inspect,
    jobs,
    measure,
    protocols,
    run,
    status,
    switch,
    watch,
    webhooks,
)
from bot.commands.fragment import fragment
from bot.commands.retract import retract
from bot.logs import begin
from bot.progress import say
from core.errors import QuantcardError

#: Typer's own exit code for Ctrl-C; ours for SIGTERM too.
INTERRUPTED = 130

app = typer.Typer(
    name="quantcard",
    help="Measures every GGUF quantization of followed Hugging Face repos and says what it found on the card.",
    epilog="Exit codes: 0 done, 1 error, 2 usage or settings, 3 a file is not what it should be, 4 the Hub, "
    "5 a measurement failed, 6 disk or database, 130 interrupted. Settings: docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command("demo")(demo.demo)
app.command("hub")(hub.hub)
app.command("follow")(watch.follow)
app.command("unfollow")(watch.unfollow)
app.command("follows")(watch.follows)
app.command("run")(run.run)
app.command("serve")(run.serve)
app.command("status")(status.status)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(backup.app, name="backup")
app.add_typer(jobs.app, name="jobs")
app.add_typer(measure.app, name="measure")
app.add_typer(baseline.app, name="baseline")
app.command("compare")(compare.compare_files)
app.add_typer(protocols.app, name="protocols")
app.command("inspect")(inspect.inspect)
app.command("import")(imports.import_)
app.command("card")(card.card)
app.command("doctor")(doctor.doctor)
app.command("pause")(switch.pause)
app.command("resume")(switch.resume)
app.add_typer(disputes.app, name="disputes")
app.command("retract")(retract)
app.command("fragment")(fragment)
app.command("leaderboard")(run.leaderboard)


@app.callback()
def _options(verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what happens on the way.")) -> None:
    begin(verbose=verbose)


def main() -> None:
    """Entry point: errors that a person can act on are one sentence on stderr and a documented exit code."""
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        app(args=arguments, prog_name="quantcard")
    except QuantcardError as error:
        say(f"Error: {error}")
        return error.exit_code
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
        if code == INTERRUPTED:
            say("Interrupted. What was running is put back; run it again to go on.")
        return code
    return 0


if __name__ == "__main__":
    main()
