"""What we know of each variant as rows of the results dataset: the one view that cards, tables and exports share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from bot.intake.references import Choice
from bot.intake.templates import template_flags
from bot.intake.view import View
from bot.publish.memory import memory_at
from bot.publish.states import found_invalid, state_of, unread
from bot.queue.plan import jobs_for
from bot.store import Store
from bot.store.changes import ENDED
from bot.store.repos import Repo, Variant
from core.audit import Flag, flags_under
from core.canonical import canonical_json, fingerprint
from core.contract import QualityResult, SpeedResult
from core.dataset import DatasetRow
from core.dataset_file import tokens_path
from core.protocol import Protocol

#: The choice for files that are gone: their figures stay against the reference that they were measured with.
_WHATEVER_IT_WAS = Choice(None, "")


#: Parts of a quality result that are no figures.
_NO_FIGURES = ("timings", "tokens_path", "tokens_sha256")


def current_rows(store: Store, seen: View, protocol: Protocol, *, repo_id: str | None = None) -> list[DatasetRow]:
    """A row for every current variant (of one repo or all), the reference's own row among them."""
    rows = []
    for one in seen.repos if repo_id is None else [repo_id]:
        if pairs := seen.of(one):
            repo = seen.repos[one]
            # Flags that a file's own header does not tell; whatever else finds such is added here.
            more = template_flags(store, repo, [v for v, _ in pairs], base_model=seen.base(one).id)
            rows += [_row(store, repo, v, choice, protocol, more=more.get(v.id, ())) for v, choice in pairs]
    return rows


def stale_rows(store: Store, seen: View, protocol: Protocol, *, repo_id: str | None = None) -> list[DatasetRow]:
    """Rows of measured files that were since replaced or removed; they stay visible, marked."""
    rows = []
    for variant in store.repos.variants(repo_id, states=("stale", "removed")):
        row = _row(store, seen.repos[variant.repo_id], variant, _WHATEVER_IT_WAS, protocol)
        if row.kld_mean is not None or row.tg_ts is not None:
            was = "replaced by a newer file of the same name" if variant.state == "stale" else "removed from the repo"
            stale = {} if row.state == "retracted" else {"state": "stale", "reason": f"It was {was}."}
            rows.append(row.model_copy(update=stale))
    return rows


def retraction_name(variant_key: str) -> str:
    """Under which name the store remembers why a file's figures were withdrawn."""
    return f"retracted:{variant_key}"


def settled(store: Store, seen: View, protocol: Protocol, repo_id: str) -> bool:
    """Whether every header of a repo's current variants was read and every job ended: its section would be whole."""
    pairs = seen.of(repo_id)
    keys = [job.key for variant, choice in pairs for job in jobs_for(variant, choice, protocol)]
    found = store.jobs.by_keys(keys)
    return not any(unread(variant) for variant, _ in pairs) and all(
        key in found and found[key].state in ENDED for key in keys
    )


def _row(
    store: Store, repo: Repo, variant: Variant, choice: Choice, protocol: Protocol, *, more: Sequence[Flag] = ()
) -> DatasetRow:
    reference = choice.reference
    against = reference.key if reference else None
    measured = store.results.measurements(variant.key, protocol.fingerprint, reference_key=against)
    quality = measured.get("quality")
    speed = measured.get("speed")
    if quality and choice is not _WHATEVER_IT_WAS and (reference is None or quality.reference_key != reference.key):
        quality = None
    jobs = {job.kind: job for job in store.jobs.by_keys([j.key for j in jobs_for(variant, choice, protocol)]).values()}
    if quality and quality.result.imported and found_invalid(jobs.get("quality")):
        quality = None
    found = variant.inspection
    known = flags_under(found, protocol.corpus) if found else []
    q = quality.result if quality and isinstance(quality.result, QualityResult) else None
    s = speed.result if speed and isinstance(speed.result, SpeedResult) else None
    imported = q is not None and q.imported is not None
    state, reason = state_of(
        variant, choice, has_quality=q is not None, has_speed=s is not None, jobs=jobs, imported=imported
    )
    if (q or s) and (withdrawn := store.results.get(retraction_name(variant.key))):
        state, reason = "retracted", withdrawn
    # Of two machines the one that measured here, since speeds are compared by it.
    first = next((one for one in (q, s) if one and one.imported is None), q or s)
    environment = first.environment if first else None
    base = store.results.baseline(reference.key, protocol.fingerprint) if reference else None
    floor = (
        store.results.measurements(reference.key, protocol.fingerprint, reference_key=against).get("quality")
        if reference
        else None
    )
    times = [m.created_at for m in (quality, speed) if m]
    row = DatasetRow(
        id=fingerprint([repo.id, variant.key, protocol.fingerprint])[:16],
        repo_id=repo.id,
        owner=repo.owner,
        variant=variant.name,
        first_file=variant.files[0].path if variant.files else None,
        n_files=len(variant.files),
        label=variant.label,
        variant_key=variant.key,
        revision=variant.revision,
        state=state,
        reason=reason,
        is_reference=bool(reference and reference.key == variant.key),
        base_model=repo.base_model,
        architecture=found.architecture if found else None,
        file_type=found.file_type if found else None,
        size_bytes=variant.size_bytes,
        n_params=found.n_params if found else None,
        bpw=found.bpw if found else None,
        imatrix_file=found.imatrix.file if found and found.imatrix else None,
        n_ctx_train=found.n_ctx_train if found else None,
        kv_bytes_per_token=2 * (found.shape.k_width + found.shape.v_width) if found and found.shape else None,
        inspection_json=canonical_json(found.model_dump(mode="json", exclude={"flags"})) if found else None,
        flags=canonical_json([flag.model_dump() for flag in [*known, *more]]),
        protocol_name=protocol.name,
        protocol_fingerprint=protocol.fingerprint,
        protocol_json=canonical_json(protocol.model_dump(mode="json")),
        reference_repo=reference.repo_id if reference else None,
        reference_variant=reference.name if reference else None,
        reference_key=reference.key if reference else (quality.reference_key if quality else None),
        reference_kind=None if choice is _WHATEVER_IT_WAS else choice.kind,
        reference_reason=choice.reason or None,
        noise_floor=_noise_floor(floor.result) if floor else None,
        ppl_base=base.ppl.value if base else None,
        environment_fingerprint=environment.fingerprint if environment else None,
        environment_json=canonical_json(environment.model_dump(mode="json")) if environment else None,
        measured_at=datetime.fromtimestamp(max(times), UTC) if times else None,
        disputed=store.answers.disputed(repo.id),
    )
    more_known = {"memory_8k_bytes": memory_at(row, 8192)} | _command(q, variant, reference, protocol)
    return row.model_copy(update=more_known | _quality_columns(q) | _speed_columns(s))


def _noise_floor(control: QualityResult | SpeedResult) -> float | None:
    """The control run's mean KLD; an imported one says nothing of the machines here."""
    return control.kld.mean if isinstance(control, QualityResult) and control.imported is None else None


def _quality_columns(q: QualityResult | None) -> dict[str, object]:
    if q is None:
        return {}
    # The exact ratio where the base's true NLL is known: the base file clips it.
    ratio = q.exact.ppl_ratio if q.exact else q.ppl_ratio
    return {
        "n_ctx": q.protocol.get("n_ctx"),
        "n_chunks": q.n_chunks,
        "n_tokens": q.n_tokens,
        "ppl": q.ppl.value,
        "ppl_stderr": q.ppl.stderr,
        "ppl_ratio": ratio.value,
        "ppl_ratio_stderr": ratio.stderr,
        "ppl_cor": q.ppl_cor,
        "kld_mean": q.kld.mean,
        "kld_stderr": q.kld.stderr,
        "kld_median": q.kld.median,
        "kld_p99": q.kld.p99,
        "kld_p99_9": q.kld.p99_9,
        "kld_max": q.kld.max,
        "same_top": q.same_top.value,
        "same_top_stderr": q.same_top.stderr,
        "delta_p_rms": q.delta_p.rms,
        "quality_json": canonical_json(q.model_dump(mode="json")),
        "quality_imported": q.imported.tool if q.imported else None,
        "tokens_path": tokens_path(q.tokens_sha256) if q.tokens_sha256 else None,
    }


def _speed_columns(s: SpeedResult | None) -> dict[str, object]:
    if s is None:
        return {}
    prompt = next((test for test in s.tests if test.n_prompt and not test.n_gen), None)
    gen = next((test for test in s.tests if test.n_gen and not test.n_prompt), None)
    return {
        "n_prompt": prompt.n_prompt if prompt else None,
        "pp_ts": prompt.avg_ts if prompt else None,
        "pp_ts_stddev": prompt.stddev_ts if prompt else None,
        "n_gen": gen.n_gen if gen else None,
        "tg_ts": gen.avg_ts if gen else None,
        "tg_ts_stddev": gen.stddev_ts if gen else None,
        # 0 is what an import knows of memory: nothing.
        "peak_memory_bytes": max((t.peak_memory_bytes for t in s.tests if t.peak_memory_bytes), default=None),
        "peak_vram_bytes": max((t.peak_vram_bytes for t in s.tests if t.peak_vram_bytes), default=None),
        "speed_json": canonical_json(s.model_dump(mode="json")),
        "speed_imported": s.imported.tool if s.imported else None,
    }


def _command(
    q: QualityResult | None, variant: Variant, reference: Variant | None, protocol: Protocol
) -> dict[str, object]:
    """The two commands that repeat a quality figure, with the files' own names, quoted for a shell."""
    if q is None or q.imported or reference is None:
        return {}
    shared, cache = (
        "".join(
            f" --{name.replace('_', '-').removeprefix('n-')} {value}"
            for name in names
            if (value := getattr(protocol, name)) != Protocol.model_fields[name].default
        )
        for names in (("n_batch", "n_ubatch", "flash_attn"), ("type_k", "type_v"))
    )
    chunks = "" if protocol.chunks < 0 else f" --chunks {protocol.chunks}"
    base = "base.gguf" if q.baseline_format == "states" else "base.kld"
    clipped = " --as-llama-cpp" if q.baseline_format == "states" and q.scoring == "llama-cpp" else ""
    record = (
        f"quantcard baseline record {shlex.quote(PurePosixPath(reference.files[0].path).name)} --corpus CORPUS.txt "
        f"--ctx {protocol.n_ctx}{chunks}{shared} --out {base}"
    )
    model = shlex.quote(PurePosixPath(variant.files[0].path).name)
    return {
        "command": f"{record} && quantcard measure quality {model} --baseline {base}{clipped}{shared}{cache} --json"
    }


def figures_key(rows: list[DatasetRow]) -> str:
    """12 hex digits over what a section says: files and figures, not wording, so that templates may improve."""
    told = [(r.variant, r.variant_key, r.state, r.reference_kind, _figures(r), r.pp_ts, r.tg_ts) for r in rows]
    return fingerprint(json.loads(json.dumps(told)))[:12]


def _figures(row: DatasetRow) -> Any:
    """A row's quality result without what changes though no figure does: how long it took, where files lie."""
    if row.quality_json is None:
        return None
    return {name: value for name, value in json.loads(row.quality_json).items() if name not in _NO_FIGURES}
