"""Whether figures measured elsewhere may stand beside a variant under the protocol in force. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import PurePosixPath

from bot.store.repos import Variant
from core.contract import BaselineResult, QualityResult, SpeedResult, SpeedTest
from core.errors import InputError
from core.protocol import Protocol

#: How far ln PPL(base) may lie from the exact one of our own baseline: a base file clips, another corpus is far off.
_PPL_SLACK = 0.05


def check_quality(found: QualityResult, variant: Variant, protocol: Protocol, baseline: BaselineResult | None) -> None:
    """Refuse a quality figure of another protocol, corpus, reference or file, as far as the log tells.

    A log does not name its corpus: where our own ``baseline`` is recorded, its chunks and perplexity must be the log's.

    Raises:
        InputError: with the difference.
    """
    if protocol.scoring != found.scoring:
        raise InputError(f"The protocol {protocol.name} scores {protocol.scoring}; llama-perplexity clips.")
    n_ctx = found.protocol["n_ctx"]
    if n_ctx != protocol.n_ctx:
        raise InputError(f"The log has chunks of {n_ctx} tokens; the protocol {protocol.name} has {protocol.n_ctx}.")
    wanted = baseline.n_chunks if baseline else protocol.chunks
    if wanted > 0 and found.n_chunks != wanted:
        raise InputError(f"The log is over {found.n_chunks} chunks; the protocol {protocol.name} has {wanted} here.")
    for name in ("type_k", "type_v"):
        kind, ours = found.protocol.get(name), getattr(protocol, name)
        if kind not in (None, ours):
            raise InputError(f"The log's KV cache was of type {kind}; the protocol {protocol.name} has {ours}.")
    model, names = found.protocol.get("model_filename"), {PurePosixPath(file.path).name for file in variant.files}
    if model is not None and model not in names:
        raise InputError(f"The log is of {model}, not of {variant.name}.")
    if baseline and abs(math.log(found.ppl_base.value / baseline.ppl.value)) > _PPL_SLACK:
        raise InputError(
            f"The log's base file has a perplexity of {found.ppl_base.value:.4f}, our baseline one of "
            f"{baseline.ppl.value:.4f}: it is of another reference or another corpus."
        )


def pick_speed(found: Sequence[SpeedResult], variant: Variant, protocol: Protocol) -> SpeedResult:
    """The protocol's tests that are of this variant: its tensors have the size and number that they name, to the byte.

    Raises:
        InputError: they are not there, or there more than once.
    """
    inspection = variant.inspection
    assert inspection is not None
    n_bytes = sum(share.bytes for share in inspection.tensor_types.values())
    own = [
        result
        for result in found
        if (result.tests[0].model_size, result.tests[0].model_n_params) == (n_bytes, inspection.n_params)
    ]
    if not own:
        others = ", ".join(sorted({result.tests[0].model_filename for result in found}))
        raise InputError(
            f"No test is of {variant.name} ({n_bytes:,} bytes of tensors, {inspection.n_params:,} parameters); they "
            f"are of {others[:300]}."
        )
    asked = [(n, 0) for n in [protocol.n_prompt] if n] + [(0, n) for n in [protocol.n_gen] if n]
    runs = []
    for result in own:
        fit = [test for test in result.tests if _fits(test, protocol)]
        slots = [[test for test in fit if (test.n_prompt, test.n_gen) == one] for one in asked]
        runs += [(result, list(tests)) for tests in itertools.product(*slots)]
    if not runs:
        raise InputError(
            f"The protocol's speed tests of {variant.name} are not all there. Run llama-bench with "
            f"-p {protocol.n_prompt} -n {protocol.n_gen} -d {protocol.n_depth} -r {protocol.repetitions} "
            f"-b {protocol.n_batch} -ub {protocol.n_ubatch} -ctk {protocol.type_k} -ctv {protocol.type_v}."
        )
    if len(runs) > 1:
        raise InputError(
            f"The protocol's speed tests of {variant.name} are there more than once, with other threads, layers or "
            "flash attention. Leave those of one run in the file."
        )
    [(result, tests)] = runs
    return result.model_copy(update={"tests": tests})


def _fits(test: SpeedTest, protocol: Protocol) -> bool:
    asked = (protocol.n_batch, protocol.n_ubatch, protocol.type_k, protocol.type_v)
    return (
        (test.n_batch, test.n_ubatch, test.type_k, test.type_v) == asked
        and test.n_depth == protocol.n_depth
        and protocol.flash_attn in ("auto", test.flash_attn)
        and len(test.samples_ns) >= protocol.repetitions
    )
