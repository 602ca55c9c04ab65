"""A section's figures as JSON: in a hidden comment, which no text in it can end, or as a file. Pure.

What is read back comes from cards that anybody may have edited: bounded, checked, or None.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bot.publish.entries import entries
from bot.publish.ranking import in_order, rank
from bot.publish.verdict import Pairs, no_pairs, verdict
from core.dataset import DatasetRow

VERSION = 1
SCHEMA = "quantcard.data"
FILE = ".quantcard.json"
#: Bytes that the comment's line may have; detail is left out of a longer one until it fits.
LIMIT = 64 << 10
_BEGIN = "<!-- quantcard:data v="
_STARTS = re.compile(rf"(?<![^\r\n]){_BEGIN}")
_LINE = re.compile(rf"{_BEGIN}(\d{{1,4}}) (\{{.*\}}) -->[ \t]*")
_MAX_VARIANTS = 5_000
_MAX_FILE = 16 << 20

DataMode = Literal["comment", "file", "none"]

#: Figures that a comment too long for its limit leaves out first.
_DETAIL = (
    "n_params", "n_tokens", "kld_median", "kld_p99", "kld_max", "same_top_stderr", "ppl", "ppl_stderr", "ppl_cor",
    "delta_p_rms", "n_prompt", "n_gen", "peak_memory_bytes", "peak_vram_bytes",
)  # fmt: skip
_MAX_KEY, _MAX_TEXT = 200, 1_000
_MAX_PICKS, _MAX_PICKED = 20, 200
#: What most variants share: said once, and of a variant only where it differs.
_SHARED = ("protocol", "reference", "environment")


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class DataVariant(_Model):
    """One variant's figures, under the names and units of :class:`core.dataset.DatasetRow`; null: not measured.

    ``file`` is its path (of a split one without shard numbers), ``key`` its sha256 (of a split one the fingerprint of
    the shards' sha256s); ``protocol``, ``reference`` and ``environment`` are fingerprints.
    """

    label: str = Field(max_length=_MAX_TEXT)
    file: str = Field(max_length=_MAX_TEXT)
    key: str = Field(max_length=_MAX_KEY)
    state: str = Field(max_length=40)
    is_reference: bool = False
    size_bytes: int = Field(ge=0)
    n_params: int | None = None
    bpw: float | None = None
    n_tokens: int | None = None
    kld_mean: float | None = None
    kld_stderr: float | None = None
    kld_median: float | None = None
    kld_p99: float | None = None
    kld_p99_9: float | None = None
    kld_max: float | None = None
    same_top: float | None = None
    same_top_stderr: float | None = None
    ppl: float | None = None
    ppl_stderr: float | None = None
    ppl_ratio: float | None = None
    ppl_ratio_stderr: float | None = None
    ppl_cor: float | None = None
    delta_p_rms: float | None = None
    quality_imported: str | None = Field(default=None, max_length=80)
    n_prompt: int | None = None
    pp_ts: float | None = None
    pp_ts_stddev: float | None = None
    n_gen: int | None = None
    tg_ts: float | None = None
    tg_ts_stddev: float | None = None
    peak_memory_bytes: int | None = None
    peak_vram_bytes: int | None = None
    speed_imported: str | None = Field(default=None, max_length=80)
    protocol: str | None = Field(default=None, max_length=_MAX_KEY)
    reference: str | None = Field(default=None, max_length=_MAX_KEY)
    environment: str | None = Field(default=None, max_length=_MAX_KEY)


class DataPick(_Model):
    """A line of the section's 'which file?' table: ``files`` (as :attr:`DataVariant.file`) can't be told apart."""

    kind: str = Field(max_length=40)
    purpose: str = Field(max_length=_MAX_TEXT)
    files: tuple[str, ...] = Field(max_length=_MAX_PICKED)


class DataBlock(_Model):
    """A repo's figures. ``protocol``, ``reference``, ``environment`` are most variants'; ``picks`` null: not told.

    ``left_out`` says what is missing; ``noise_floor``: mean KLD (nats) of the reference against its own baseline.
    """

    repo: str = Field(max_length=_MAX_TEXT)
    protocol_name: str = Field(max_length=_MAX_TEXT)
    protocol: str | None = Field(default=None, max_length=_MAX_KEY)
    reference: str | None = Field(default=None, max_length=_MAX_KEY)
    reference_file: str | None = Field(default=None, max_length=_MAX_TEXT)
    reference_kind: str | None = Field(default=None, max_length=_MAX_KEY)
    environment: str | None = Field(default=None, max_length=_MAX_KEY)
    noise_floor: float | None = None
    picks: tuple[DataPick, ...] | None = Field(default=None, max_length=_MAX_PICKS)
    variants: tuple[DataVariant, ...] = Field(max_length=_MAX_VARIANTS)
    left_out: str | None = Field(default=None, max_length=_MAX_TEXT)


def data_of(rows: Sequence[DatasetRow], *, pairs: Pairs = no_pairs) -> DataBlock:
    """The figures of a repo's rows (one at least), largest file first, with labels as the section shows them."""
    ordered = in_order(rows)
    most = ordered[0].protocol_fingerprint
    reference = _most(row.reference_key for row in ordered)
    of_reference = next((row for row in ordered if reference and row.reference_key == reference), None)
    names = {"file": "variant", "key": "variant_key", "protocol": "protocol_fingerprint",
             "reference": "reference_key", "environment": "environment_fingerprint"}  # fmt: skip
    variants = tuple(
        DataVariant(**{name: _clean(getattr(row, names.get(name, name))) for name in DataVariant.model_fields})
        for row in ordered[:_MAX_VARIANTS]
    )
    return DataBlock(
        repo=ordered[0].repo_id,
        protocol_name=ordered[0].protocol_name,
        protocol=_most(row.protocol_fingerprint for row in ordered) or most,
        reference=reference,
        reference_file=_clean(f"{of_reference.reference_repo}/{of_reference.reference_variant}")
        if of_reference and of_reference.reference_variant
        else None,
        reference_kind=of_reference.reference_kind if of_reference else None,
        environment=_most(row.environment_fingerprint for row in ordered),
        noise_floor=_clean(of_reference.noise_floor) if of_reference else None,
        picks=_picks(ordered, pairs),
        variants=variants,
        left_out=None if len(ordered) <= _MAX_VARIANTS else f"{len(ordered) - _MAX_VARIANTS} variants",
    )


def _picks(rows: Sequence[DatasetRow], pairs: Pairs) -> tuple[DataPick, ...]:
    paths = {row.id: str(_clean(row.variant)) for row in rows}
    return tuple(
        DataPick(kind=one.kind, purpose=one.purpose, files=tuple(paths[key] for key in one.files[:_MAX_PICKED]))
        for one in verdict(entries(rank(rows)), pairs=pairs).picks
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a block, in the comment or in the file (docs/section-schema.json)."""
    found = DataBlock.model_json_schema()
    found["properties"] |= {"schema": {"const": SCHEMA}, "version": {"const": VERSION}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "quantcard section data",
        **{name: value for name, value in found.items() if name != "title"},
    }


def _most(values: Any) -> str | None:
    known = Counter(value for value in values if value is not None)
    return known.most_common(1)[0][0] if known else None


def _clean(value: Any) -> Any:
    """What JSON can carry: no NaN or infinity, no text that has no UTF-8."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value[:_MAX_TEXT].encode("utf-8", "replace").decode()
    return value


def encode(rows: Sequence[DatasetRow], *, limit: int = LIMIT, pairs: Pairs = no_pairs) -> str:
    """The hidden comment, one line of at most ``limit`` bytes, without a newline; floats keep 7 significant digits.

    Where it would be longer, first lesser figures and then the smallest files are left out, and it says so.
    """
    return encode_block(data_of(rows, pairs=pairs), limit=limit)


def encode_block(block: DataBlock, *, limit: int = LIMIT) -> str:
    """The same of a block (see :func:`encode`)."""
    line = _comment(block)
    if len(line) <= limit:
        return line
    plain = tuple(one.model_copy(update=dict.fromkeys(_DETAIL)) for one in block.variants)
    detail = f"detail ({', '.join(_DETAIL)})"
    n_kept = len(plain)
    while n_kept and len(line) > limit:
        left = f"{detail}, {len(plain) - n_kept} variants" if n_kept < len(plain) else detail
        line = _comment(block.model_copy(update={"variants": plain[:n_kept], "left_out": left, "picks": None}))
        # Names differ in length, so what fits is found by trying; each try leaves out what is surely too much.
        n_kept = min(n_kept - 1, n_kept * limit // max(len(line), 1))
    return line


def _comment(block: DataBlock) -> str:
    text = json.dumps(_compact(block), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    # Two hyphens or an angle bracket could end the comment; in JSON they only stand in strings.
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("--", "-\\u002d")
    return f"{_BEGIN}{VERSION} {text} -->"


def _compact(block: DataBlock) -> dict[str, Any]:
    """Without nulls and defaults; of a variant what it shares with the block is left out."""
    found = {name: value for name, value in block if value is not None and name not in ("variants", "picks")}
    if block.picks is not None:
        found["picks"] = [one.model_dump(mode="json") for one in block.picks]
    shared = {name: getattr(block, name) for name in _SHARED}
    found["variants"] = [
        {
            name: _short(value)
            for name, value in one
            if (value != shared[name] if name in shared else value is not None and value is not False)
        }
        for one in block.variants
    ]
    return {name: _short(value) for name, value in found.items()}


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def data_file(rows: Sequence[DatasetRow], *, pairs: Pairs = no_pairs) -> bytes:
    """The same as a file (:data:`FILE`): all figures with all digits, indented."""
    return _file(data_of(rows, pairs=pairs))


def _file(block: DataBlock) -> bytes:
    told = {"schema": SCHEMA, "version": VERSION, **block.model_dump(mode="json")}
    return (json.dumps(told, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def with_data(body: str, rows: Sequence[DatasetRow], mode: DataMode) -> tuple[str, dict[str, bytes]]:
    """A section's body and the files to go with it, with the figures in a comment, in a file, or nowhere."""
    return with_block(body, data_of(rows), mode)


def with_block(body: str, block: DataBlock, mode: DataMode) -> tuple[str, dict[str, bytes]]:
    """The same of a block (see :func:`with_data`)."""
    if mode == "comment":
        return f"{body.rstrip()}\n\n{encode_block(block)}\n", {}
    return body, {FILE: _file(block)} if mode == "file" else {}


def decode(text: str) -> DataBlock | None:
    """The figures in a section's (or a whole card's) comment; None unless there is exactly one, and a good one."""
    starts = [match.start() for match in islice(_STARTS.finditer(text), 2)]
    if len(starts) != 1:
        return None
    line = re.split(r"[\r\n]", text[starts[0] : starts[0] + LIMIT + 1], maxsplit=1)[0]
    found = _LINE.fullmatch(line)
    if not found or len(line) > LIMIT or int(found[1]) != VERSION:
        return None
    return _read(found[2])


def decode_file(data: bytes) -> DataBlock | None:
    """The figures of a :data:`FILE`, or None where it is not one of ours."""
    if len(data) > _MAX_FILE:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return _read(text, schema=SCHEMA)


def _read(text: str, *, schema: str | None = None) -> DataBlock | None:
    try:
        told = json.loads(text, parse_constant=_refuse)
        if not isinstance(told, dict) or (schema and (told.get("schema"), told.get("version")) != (schema, VERSION)):
            return None
        shared = {name: told.get(name) for name in _SHARED}
        if isinstance(told.get("variants"), list) and not schema:
            told["variants"] = [{**shared, **one} if isinstance(one, dict) else one for one in told["variants"]]
        return DataBlock.model_validate(told)
    except (ValueError, ValidationError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no figure")
