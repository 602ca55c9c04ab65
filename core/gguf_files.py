"""File names of GGUF repos: which are model variants, which belong together as split shards, what their label is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
#: Not model variants: projectors of multimodal models, importance matrices, adapters, vocabularies, draft heads.
_NOT_A_VARIANT = re.compile(
    r"(^|[-_.])(mmproj|imatrix|i-matrix|lora|adapter|vocab|ggml-vocab|control[-_]?vector|mtp)([-_.]|$)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?:^|[-._])((?:UD-|i1-)?(?:IQ[1-4]_(?:XXS|XS|S|M|NL)(?:_XL)?|I?Q\d_K(?:_(?:XXL|XL|L|M|S|XS))?|Q\d_[01]"
    r"(?:_[48]_[48])?|BF16|F16|FP16|F32|FP32|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4))(?=$|[-._])",
    re.IGNORECASE,
)


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
        return len(self.files) == self.n_shards

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def key(self) -> str:
        """The identity: the sha256 of the single file, or of the shards' joined sha256s."""
        from core.canonical import fingerprint

        shas = [file.sha256 or "" for file in self.files]
        return shas[0] if len(shas) == 1 else fingerprint(shas)


def is_variant_file(path: str) -> bool:
    """Whether ``path`` names a model's weights (and not a projector, an imatrix, an adapter or a vocabulary)."""
    pure = PurePosixPath(path)
    return pure.suffix.lower() == ".gguf" and not _NOT_A_VARIANT.search(pure.stem)


def label_of(path: str) -> str:
    """The quantization label in a file name (``Q4_K_M``, ``UD-IQ2_XXS``), or the whole stem when there is none."""
    stem = PurePosixPath(variant_name(path)).stem
    found = _LABEL.findall(stem)
    return found[-1].upper().replace("FP16", "F16").replace("FP32", "F32") if found else stem


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
    """The variants among a repo's files, by name; shards are grouped and ordered, other files left out."""
    groups: dict[tuple[str, int], dict[int, RepoFile]] = defaultdict(dict)
    for file in files:
        if is_variant_file(file.path):
            number, count = shard_of(file.path)
            groups[variant_name(file.path), count][number] = file
    variants = [
        VariantFiles(name, tuple(shards[n] for n in sorted(shards)), count) for (name, count), shards in groups.items()
    ]
    return sorted(variants, key=lambda variant: variant.name)
