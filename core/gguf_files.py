"""File names of GGUF repos: which are model variants, which belong together as split shards, what their label is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from core.canonical import fingerprint

_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
#: Never a model variant: projectors of multimodal models, control vectors, llama.cpp's test vocabularies, and draft
#: heads (``mtp-X``; ``X-MTP`` is a whole model that kept its heads).
_NEVER = re.compile(r"(^|[-_.])(mmproj|control[-_]?vectors?|ggml-vocab)([-_.]|$)|^mtp[-_.]", re.IGNORECASE)
#: Perhaps none: importance matrices, adapters and vocabularies are called so, but so are models that were merged from
#: an adapter or quantized with a matrix. :func:`group_variants` decides.
_PERHAPS_NOT = re.compile(r"(^|[-_.])(imatrix|i-matrix|lora|adapter|vocab)([-_.]|$)", re.IGNORECASE)
_KINDS = (
    r"IQ[1-4]_(?:XXS|XS|S|M|NL)(?:_XL)?"  # llama.cpp's I-quants, and unsloth's larger ones
    r"|IQ\d_(?:KSS|KS|KT|KL|K)(?:_R[48])?"  # ik_llama.cpp's
    r"|Q\d_K(?:_(?:XXL|XL|XXS|XS|[SMLPU]))?(?:_X?L)?"
    r"|Q\d_[01](?:_[48]_[48]|_X?L)?"
    r"|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4"
    r"|BF16|F16|FP16|F32|FP32"
)
_LABEL = re.compile(rf"(?:^|[-._])((?:UD-|i1-)?(?:{_KINDS}))(?=$|[-._])", re.IGNORECASE)
#: What adapters and importance matrices are kept in, or computed from; other labels are only ever a model's.
_WIDE = frozenset({"F32", "F16", "BF16", "Q8_0"})


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repo: path, size in bytes and, for LFS files, the sha256 of its content."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class VariantFiles:
    """The files of one variant in shard order; its identity is ``key``, made of their sha256s."""

    name: str
    files: tuple[RepoFile, ...]
    n_shards: int

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return [shard_of(file.path)[0] for file in self.files] == list(range(1, self.n_shards + 1))

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def key(self) -> str:
        """The identity: the sha256 of the single file, or of the shards' joined sha256s."""
        return identity([file.sha256 or "" for file in self.files])


def identity(hashes: Sequence[str]) -> str:
    """What a variant is known by: its file's sha256, or the fingerprint of its shards' sha256s in shard order."""
    return hashes[0] if len(hashes) == 1 else fingerprint(list(hashes))


def shard_names(name: str) -> list[str]:
    """The names of all files of the split set that ``name`` belongs to (just ``name`` for a single file)."""
    _, count = shard_of(name)
    if count == 1:
        return [name]
    head = name[: -len("-00001-of-00002.gguf")]
    return [f"{head}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def label_of(path: str) -> str:
    """The quantization label in a file name (``Q4_K_M``, ``UD-IQ2_XXS``, ``i1-IQ3_M``), else in its folder's name.

    The whole stem when there is none. The last label of a name counts.
    """
    return _known_label(path) or PurePosixPath(variant_name(path)).stem


def bare_label(label: str) -> str:
    """A label without its maker's prefix: ``Q4_K_M`` for ``UD-Q4_K_M`` and ``i1-Q4_K_M``."""
    return label.removeprefix("UD-").removeprefix("i1-")


def _known_label(path: str) -> str | None:
    pure = PurePosixPath(variant_name(path))
    for text in (pure.stem, pure.parent.name):
        if found := _LABEL.findall(text):
            label = found[-1].upper().replace("FP16", "F16").replace("FP32", "F32")
            return label.replace("I1-", "i1-")
    return None


def _family(path: str) -> str:
    """A file's path without its label: what the quantizations of one model have in common."""
    name = variant_name(path)
    return _LABEL.sub("", name.removesuffix(PurePosixPath(name).suffix)).lower()


def variant_name(path: str) -> str:
    """The variant's name in its repo: the path, for shards without ``-00001-of-0000N``."""
    pure = PurePosixPath(path)
    split = _SPLIT.match(pure.name)
    return str(pure.with_name(f"{split['stem']}.gguf")) if split else path


def shard_of(path: str) -> tuple[int, int]:
    """(number, count) of a shard, 1-based; (1, 1) for a single file."""
    split = _SPLIT.match(PurePosixPath(path).name)
    return (int(split["no"]), int(split["count"])) if split else (1, 1)


def group_variants(files: Iterable[RepoFile]) -> list[VariantFiles]:
    """The variants among a repo's files, by name; shards are grouped and ordered, other files left out.

    A file called after an importance matrix, an adapter or a vocabulary is a variant only where it, or a file that
    differs from it in nothing but the label, has a label that such a thing never has: ``My-LoRA-7B-Q8_0`` is beside
    ``My-LoRA-7B-Q4_K_M``, and is not when it stands alone.
    """
    ggufs = [file for file in files if PurePosixPath(file.path).suffix.lower() == ".gguf"]
    models = {
        _family(file.path)
        for file in ggufs
        if (label := _known_label(file.path)) is not None and bare_label(label) not in _WIDE
    }
    groups: dict[tuple[str, int], dict[int, RepoFile]] = defaultdict(dict)
    for file in ggufs:
        stem = PurePosixPath(variant_name(file.path)).stem
        if _NEVER.search(stem) or (_PERHAPS_NOT.search(stem) and _family(file.path) not in models):
            continue
        number, count = shard_of(file.path)
        groups[variant_name(file.path), count][number] = file
    variants = [
        VariantFiles(name, tuple(shards[n] for n in sorted(shards)), count) for (name, count), shards in groups.items()
    ]
    return sorted(variants, key=lambda variant: (variant.name, variant.n_shards))
