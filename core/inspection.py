"""What an audit finds in a variant's headers, as it is stored and shown, and which group a tensor belongs to."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal, get_args

from gguf import LlamaFileType
from pydantic import BaseModel, ConfigDict, model_validator

Group = Literal[
    "attention", "ffn_up", "ffn_gate", "ffn_down", "ffn_other", "experts_up", "experts_gate", "experts_down",
    "experts_other", "ssm", "embeddings", "output", "norms", "other",
]  # fmt: skip
GROUPS: tuple[Group, ...] = get_args(Group)
#: Raised when the audit learns to see more: a stored one with a lower number is worth doing again.
AUDIT_VERSION = 3
#: Groups of the first version, which knew no parts.
_OLD_GROUPS = {"ffn": "ffn_other", "experts": "experts_other"}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TypeShare(_Model):
    """How much of a model is kept in one tensor type."""

    count: int
    params: int
    bytes: int


class Imatrix(_Model):
    """The importance matrix that llama-quantize wrote into the header (its keys may be stale after requantizing)."""

    file: str | None
    dataset: str | None
    entries: int | None
    chunks: int | None


class BaseModelRef(_Model):
    """A base model that the header names; a claim of the uploader, not a proof."""

    name: str | None = None
    organization: str | None = None
    repo_url: str | None = None
    repo_id: str | None = None


class Flag(_Model):
    """Something worth a look: a stable code and a sentence."""

    code: str
    detail: str


class ModelShape(_Model):
    """What a model's size in memory depends on; bytes are those of its tensors, widths are in values a token."""

    n_layers: int
    n_embd: int
    n_vocab: int
    n_heads: int
    #: The widest thing that one layer makes of a token: a feed-forward part, the experts used together, a fused QKV.
    widest: int
    #: Of the K and the V cache, all layers together.
    k_width: int
    v_width: int
    #: 32-bit values that state-space, RWKV and short-convolution layers keep for each sequence.
    state_values: int
    weights: int
    largest_layer: int
    #: Of embeddings, head and what else stands in no layer.
    outside_layers: int
    #: Of the tensors that a CPU may copy into another layout.
    repacked: int


class Inspection(_Model):
    """Everything ``quantcard inspect`` tells; sizes in bytes, ``bpw`` = 8 x tensor bytes / parameters."""

    architecture: str | None
    n_params: int
    size_bytes: int
    bpw: float
    file_type: str | None
    n_tensors: int
    tensor_types: dict[str, TypeShare]
    groups: dict[Group, dict[str, TypeShare]]
    imatrix: Imatrix | None
    base_models: list[BaseModelRef]
    shards: int
    chat_template_sha256: str | None
    n_vocab: int | None
    n_ctx_train: int | None
    flags: list[Flag]
    #: Of the vocabulary's raw bytes (count, then every string): equal means the same tokens in the same order.
    vocab_sha256: str | None = None
    tokenizer_model: str | None = None
    tokenizer_pre: str | None = None
    #: What ``general.source.*`` names: the repo that the file was converted from.
    source: BaseModelRef | None = None
    #: How many of ``shards`` were there.
    shards_found: int | None = None
    #: What its size in memory depends on; None before audit version 3, or where no layers are described.
    shape: ModelShape | None = None
    audit_version: int = 1

    @model_validator(mode="before")
    @classmethod
    def _from_the_first_version(cls, value: Any) -> Any:
        """What was stored before groups had parts can still be read."""
        if isinstance(value, dict) and isinstance(groups := value.get("groups"), dict) and groups.keys() & _OLD_GROUPS:
            return {**value, "groups": {_OLD_GROUPS.get(name, name): shares for name, shares in groups.items()}}
        return value

    @property
    def outdated(self) -> bool:
        """Whether it comes from an audit that saw less than today's."""
        return self.audit_version < AUDIT_VERSION


_EMBEDDINGS = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})
_ROUTERS = frozenset({"ffn_gate_inp", "ffn_gate_inp_shexp", "ffn_gate_tid2eid", "exp_probs_b"})
#: Gate and up in one tensor count as up, as they do where models without experts fuse them.
_ROLES: tuple[tuple[str, Literal["up", "gate", "down"]], ...] = (
    ("ffn_gate_up", "up"), ("ffn_up", "up"), ("ffn_gate", "gate"), ("ffn_down", "down"),
)  # fmt: skip
_FFN: dict[str, Group] = {"up": "ffn_up", "gate": "ffn_gate", "down": "ffn_down"}
_EXPERTS: dict[str, Group] = {"up": "experts_up", "gate": "experts_gate", "down": "experts_down"}


def short_name(name: str) -> str:
    """A tensor's name without its place: ``attn_q`` of ``blk.3.attn_q.weight``."""
    parts = name.split(".")
    if parts[0] in ("enc", "dec") and len(parts) > 1:
        parts = parts[1:]
    return parts[2] if parts[0] == "blk" and len(parts) > 2 else parts[0]


def layer_of(name: str) -> int | None:
    """The number in ``blk.3.attn_q.weight``, or None."""
    found = re.match(r"(?:enc\.|dec\.)?blk\.([0-9]{1,6})\.", name, re.ASCII)
    return int(found[1]) if found else None


@lru_cache(maxsize=4096)
def group_of(name: str) -> Group:
    """The group a tensor belongs to, by llama.cpp's naming.

    ``experts_up`` and the like are the routed experts; shared experts and routers are ``experts_other``. ``ssm`` holds
    state-space, RWKV and short-convolution tensors.
    """
    short = short_name(name)
    if "norm" in short:
        return "norms"
    if short in _EMBEDDINGS:
        return "embeddings"
    if short == "output":
        return "output"
    if short in _ROUTERS or "shexp" in short:
        return "experts_other"
    if short.startswith("ffn_"):
        # One tensor for each expert (blk.0.ffn_up.3.weight) is how the first mixtures were stored.
        routed = "_exps" in short or re.search(r"\.ffn_\w+\.[0-9]+\.", name, re.ASCII) is not None
        role = next((role for prefix, role in _ROLES if short.startswith(prefix)), None)
        if role is None:
            return "experts_other" if routed else "ffn_other"
        return (_EXPERTS if routed else _FFN)[role]
    if "_exps" in short:
        return "experts_other"
    if short.startswith(("ssm_", "time_mix", "shortconv")):
        return "ssm"
    if short.startswith("channel_mix"):
        return "ffn_other"
    return "attention" if "attn" in short else "other"


#: Characters of a text that is taken over from a header; llama.cpp itself writes 127 bytes.
_MAX_TEXT = 500
#: llama.cpp's labels of file types (``Q4_K_M``).
FILE_TYPES = frozenset(
    kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    for kind in LlamaFileType
    if kind is not LlamaFileType.GUESSED
)


def file_type_name(kv: dict[str, Any]) -> str | None:
    """``general.file_type`` as llama.cpp's label (``Q4_K_M``), or None when absent or unknown."""
    value = int_of(kv.get("general.file_type"))
    if value is None:
        return None
    try:
        return LlamaFileType(value & ~1024).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return f"file_type {value}"


def int_of(value: Any) -> int | None:
    """A header's value where it is an integer."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def str_of(value: Any) -> str | None:
    """A header's value where it is text, as much of it as anybody writes there (500 characters)."""
    return value[:_MAX_TEXT] if isinstance(value, str) else None
