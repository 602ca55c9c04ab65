"""Which of a checkpoint's tensors each tensor of a GGUF was made from, and whether one is missing or too many. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from core.conversion import Mismatch, Names, Rules, is_other_part, to_generate

#: Buffers that the converter leaves out.
_LEFT_OUT: Final = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
#: All experts of a block in one tensor: some converters split it, others keep it.
_FUSED: Final = (".experts.gate_up_proj", ".experts.down_proj", ".input_linear", ".output_linear")
HEAD: Final = "output.weight"
EMBEDDINGS: Final = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Counterpart:
    """A checkpoint's tensor that a GGUF tensor was made from: all of it, or its expert number ``expert``."""

    name: str
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Correspondence:
    """What each of a GGUF's tensors was made from, by name, and those that the converter generates."""

    counterparts: dict[str, tuple[Counterpart, ...]]
    generated: frozenset[str]


def correspond(
    shapes: Mapping[str, tuple[int, ...]],
    checkpoint: Iterable[str],
    names: Names,
    config: Mapping[str, Any],
    rules: Rules,
) -> Correspondence | Mismatch:
    """Both sides' tensors by each other, or where they do not fit.

    Every tensor of the checkpoint must be in the GGUF, but a head that is the embeddings and what converters drop;
    and every one of the GGUF must be the checkpoint's, or one that the config makes the converter generate.

    Args:
        shapes: of the GGUF's tensors, by name, in ggml's order.
        checkpoint: the names of the checkpoint's.
        config: as :func:`core.conversion.text_config` gives it.
    """
    found: dict[str, list[Counterpart]] = defaultdict(list)
    headless = rules.drops_head or config.get("tie_word_embeddings") is True
    for name in checkpoint:
        if is_other_part(name) or name.removesuffix(".weight").endswith(_LEFT_OUT):
            continue
        place = names.of(name)
        if place is None and headless and name.endswith("lm_head.weight"):
            continue
        if place is None:
            return Mismatch(f"the base model's {name[:100]} has no place in a GGUF that is known here", False)
        if place[0] in shapes:
            found[place[0]].append(Counterpart(name, place[1]))
        elif place[0] != HEAD or not headless:
            sure = rules.known and not name.removesuffix(".weight").endswith(_FUSED)
            return Mismatch(f"it lacks {place[0]}, which the base model has ({name[:100]})", sure)
    generated = to_generate(config, rules)
    if lacking := sorted(generated - shapes.keys()):
        return Mismatch(f"it lacks {lacking[0]}, which the base model's config.json asks for", rules.known)
    if HEAD in shapes and HEAD not in found:
        # A head that the checkpoint shares with its embeddings.
        found[HEAD] = list(found.get(EMBEDDINGS, ()))
    if extra := sorted(shapes.keys() - found.keys() - generated):
        return Mismatch(f"{extra[0]} has no counterpart in the base model", False)
    for tensor, those in found.items():
        if said := _unclear(tensor, shapes[tensor], those):
            return Mismatch(said, False)
    return Correspondence({name: tuple(those) for name, those in found.items()}, generated)


def _unclear(tensor: str, shape: tuple[int, ...], those: list[Counterpart]) -> str | None:
    """Words where a tensor is not of exactly one of the checkpoint's, or of as many experts as it has."""
    experts = sorted(one.expert for one in those if one.expert is not None)
    if not experts:
        return None if len(those) == 1 else f"{tensor} has {len(those)} counterparts in the base model"
    if len(experts) != len(those) or experts != list(range(len(those))) or not shape or shape[-1] != len(those):
        return f"the experts of {tensor} are not those of the base model"
    return None
