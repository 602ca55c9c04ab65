"""``quantcard import``: figures that llama.cpp's own tools measured elsewhere enter, marked as imported."""

from __future__ import annotations

import codecs
import hashlib
from pathlib import Path
from typing import Annotated

import typer

from bot.clock import SystemClock, iso
from bot.commands.common import DbOption, find_variant
from bot.intake.imports import check_quality, pick_speed
from bot.progress import say
from bot.publish.states import found_invalid
from bot.queue.plan import job_key, measurable
from bot.settings import load_settings
from bot.store import Store
from core.contract import QualityResult, SpeedResult
from core.errors import InputError, SettingsError
from core.figures import Imported
from core.foreign import parse_llama_perplexity, plain, tool_of
from core.foreign_bench import parse_llama_bench
from core.format import significant, speed

#: A log of llama-perplexity has a few kilobytes, a very verbose one megabytes.
_MAX_LOG = 64 << 20


def import_(
    target: Annotated[str, typer.Argument(help="OWNER/REPO/FILE.gguf, as it lies on the Hub.")],
    log: Annotated[
        Path, typer.Argument(help="Output of 'llama-bench -o json', or a log of 'llama-perplexity --kl-divergence'.")
    ],
    db: DbOption = None,
) -> None:
    """Take in a figure measured elsewhere; it is marked as imported, and stands until it is measured here."""
    settings = load_settings(db=db)
    protocol = settings.protocol_in_force()
    text, digest = _read(log)
    tool = tool_of(text)
    mark = Imported(tool=tool, source=plain(log.name), sha256=digest)
    with Store(settings.db) as store:
        variant, choice = find_variant(store, settings, target)
        if not measurable(variant):
            raise InputError(f"{variant.name} can't be measured, so nothing is imported for it: {variant.note}")
        result: QualityResult | SpeedResult
        if tool == "llama-perplexity":
            if choice.reference is None:
                raise SettingsError(f"{variant.name} has no reference, so no quality figure. {choice.reason}")
            key = job_key("quality", variant_key=variant.key, protocol=protocol, reference_key=choice.reference.key)
            job = store.jobs.by_keys([key]).get(key)
            if job and found_invalid(job):
                raise SettingsError(f"{variant.name} was found INVALID here, which no import changes. {job.error}")
            quality = parse_llama_perplexity(text)
            baseline = store.results.baseline(choice.reference.key, protocol.fingerprint)
            check_quality(quality, variant, protocol, baseline)
            result = quality.model_copy(update={"imported": mark})
            told = f"a mean KLD of {significant(quality.kld.mean)} and {quality.same_top.value:.1%} same top p"
        else:
            speeds = pick_speed(parse_llama_bench(text), variant, protocol)
            result = speeds.model_copy(update={"imported": mark})
            told = " and ".join(
                f"{'pp' if test.n_prompt else 'tg'}{test.n_prompt or test.n_gen} of {speed(test.avg_ts)} t/s"
                for test in speeds.tests
            )
        against = choice.reference.key if choice.reference and result.kind == "quality" else None
        known = store.results.save_import(
            variant.key, protocol.fingerprint, result, reference_key=against, now=SystemClock().now()
        )
    if known and known.result.imported is None:
        raise SettingsError(
            f"The {result.kind} of {variant.name} was measured here on {iso(known.created_at)[:10]}; what is imported "
            "never replaces that."
        )
    if known:
        say(f"{log.name} was imported for {variant.name} before; nothing changes.")
        return
    say(f"Imported for {variant.name}: {told}. Marked as such, and replaced once it is measured here.")


def _read(log: Path) -> tuple[str, str]:
    """A file's text and sha256; a Windows shell writes UTF-16."""
    try:
        if log.stat().st_size > _MAX_LOG:
            raise InputError(f"{log} is larger than {_MAX_LOG >> 20} MiB: it is no log of these tools.")
        data = log.read_bytes()
    except OSError as error:
        raise InputError(f"{log} can't be read ({error.strerror}). Check the path.") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    return text, hashlib.sha256(data).hexdigest()
