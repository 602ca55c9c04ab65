"""Proves over ranged reads that a GGUF on the Hub has its base model's weights, and stores the verdict.

Nothing is downloaded: of both repos a few headers are read and some pieces of tensors. What is compared, and what it
proves, is decided in :mod:`core.tensor_proof`.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from bot.hub.budget import Urgency, urgency
from bot.hub.door import FileTooLargeError, HubDoor
from bot.intake.base_models import same_repo
from bot.intake.references import same_model
from bot.intake.view import View, view
from bot.store import Store
from bot.store.proofs import Proof
from bot.store.repos import Variant
from core import safetensors
from core.conversion import Names, differing_generated, rules_of, settings_difference, text_config
from core.errors import GGUFError, HubAuthError, HubError, HubNotFoundError, HubRateLimitError, HubUnreachableError
from core.gguf_files import RepoFile
from core.gguf_header import GGUFHeader, Tensor
from core.gguf_header import read_header as read_gguf_header
from core.safetensors import SafeTensor, SafetensorsError
from core.tensor_proof import (
    MAX_BYTES,
    Compared,
    Counterpart,
    Draw,
    Judgement,
    Span,
    choose_pieces,
    judge,
    n_different,
    span_of,
)

logger = logging.getLogger(__name__)

#: Requests that one proof may take; each piece takes two.
MAX_REQUESTS: Final = 64
_PIECES: Final = 24
#: Files of either repo whose headers are read: others of a larger model are left out by lot.
_MAX_FILES: Final = 6
_MAX_CONFIG: Final = 2 << 20
#: Seconds after which a base model is asked for its commit again, and what could not be read is tried again.
RECHECK_S: Final = 7 * 86400.0
#: Repos in need that are looked at before a proof is called useless.
_LOOKED_AT: Final = 20


class _Unprovable(Exception):
    """No verdict but 'unprovable'; the message is the reason, a sentence."""


class _Reader:
    """Ranged reads that are counted; what comes short, or goes over the limit, ends the proof."""

    def __init__(self, hub: HubDoor) -> None:
        self._hub = hub
        self.requests = 0

    def ask(self, n: int = 1) -> None:
        self.requests += n
        if self.requests > MAX_REQUESTS:
            raise _Unprovable(f"It would take more than {MAX_REQUESTS} requests.")

    def range(self, repo_id: str, path: str, revision: str, offset: int, length: int) -> bytes:
        self.ask()
        data = self._hub.read_range(repo_id, path, revision=revision, offset=offset, length=length)
        if len(data) != length:
            raise _Unprovable(f"{path} of {repo_id} is shorter than the Hub says.")
        return data

    def of(self, repo_id: str, file: RepoFile, revision: str) -> Callable[[int, int], bytes]:
        return lambda offset, length: self.range(repo_id, file.path, revision, offset, length)

    def whole(self, repo_id: str, file: RepoFile, revision: str, *, limit: int) -> bytes:
        if file.size > limit:
            raise _Unprovable(f"{file.path} of {repo_id} is larger than {limit >> 20} MiB.")
        return self.range(repo_id, file.path, revision, 0, file.size)


def prove_references(
    store: Store, hub: HubDoor, *, now: float, limit: int, trusted: Collection[str] = ()
) -> list[Proof]:
    """Prove up to ``limit`` files that would give somebody's variants a reference, and store the verdicts.

    A verdict stands until the file or the base model's commit is another one; that commit is asked for once a week.

    Raises:
        HubUnreachableError: the Hub is away; verdicts reached before that are stored, the one at hand is not.
        HubRateLimitError: its budget is spent; likewise.
    """
    done: list[Proof] = []
    with urgency(Urgency.LOOK):
        for old, variant in store.proofs.old(before=now - RECHECK_S, limit=limit):
            proof = _again(hub, old, variant, now=now)
            store.proofs.save(proof)
            if proof.salt != old.salt:
                done.append(proof)
                _changed(store, proof, now=now)
        served: set[str] = set()
        for base, variant in store.proofs.unproven(limit=8 * limit):
            if len(done) >= limit:
                break
            if base.lower() in served or not _helps(view(store, trusted=trusted), store, base, variant):
                continue
            proof = prove(hub, variant, base, now=now)
            store.proofs.save(proof)
            done.append(proof)
            if proof.verdict == "proven":
                served.add(base.lower())
                _changed(store, proof, now=now)
    return done


def _helps(seen: View, store: Store, base: str, reference: Variant) -> bool:
    """Whether some repo's variants would get a reference, or a better one, by this file."""
    if not same_repo(seen.base(reference.repo_id).id, base):
        return False
    return any(
        choice.kind in ("none", "q8_0") and same_model(variant, reference)
        for repo_id in store.proofs.in_need(base, limit=_LOOKED_AT)
        if same_repo(seen.base(repo_id).id, base)
        for variant, choice in seen.of(repo_id)
    )


def _changed(store: Store, proof: Proof, *, now: float) -> None:
    """Have the jobs and cards of everybody's files of a base model decided anew."""
    store.watching.want_plan_of_base(proof.base_model)
    for repo_id in store.repos.ids_of_base(proof.base_model):
        store.publishing.touch(repo_id, now=now)


def _again(hub: HubDoor, old: Proof, variant: Variant, *, now: float) -> Proof:
    """A proof that was not looked at for long: as it was, where the base model's commit is."""
    if old.base_sha is not None:
        try:
            if hub.repo(old.base_model).sha == old.base_sha:
                return Proof(old.reference_key, old.base_model, old.base_sha, old.verdict, old.detail, old.salt, at=now)
        except (HubNotFoundError, HubAuthError):
            # Its weights can't be seen any more; what was proven of them stays true.
            return Proof(old.reference_key, old.base_model, old.base_sha, old.verdict, old.detail, old.salt, at=now)
    return prove(hub, variant, old.base_model, now=now)


def prove(hub: HubDoor, reference: Variant, base: str, *, now: float, salt: str | None = None) -> Proof:
    """Compare a file's sampled tensors with its base model's.

    Args:
        salt: what the sample is drawn with; by default it is drawn now, when the file can't be changed any more without
            becoming another one. Nobody can know beforehand which pieces will be compared, and the stored salt lets
            everybody repeat it.

    Raises:
        HubUnreachableError, HubRateLimitError: nothing can be said.
    """
    salt = salt or secrets.token_hex(16)
    sha: str | None = None
    try:
        summary = hub.repo(base)
        sha = summary.sha
        if sha is None:
            raise _Unprovable(f"The Hub tells no commit of {base}.")
        reader = _Reader(hub)
        reader.ask()
        found = _judge(reader, hub, reference, base, sha, Draw(reference.key, sha, salt))
    except (HubUnreachableError, HubRateLimitError):
        raise
    except (HubNotFoundError, HubAuthError, FileTooLargeError) as error:
        # Not for our token, or gone: perhaps another week.
        sha, found = None, Judgement("unprovable", str(error))
    except (_Unprovable, SafetensorsError, GGUFError, HubError) as error:
        found = Judgement("unprovable", str(error))
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        logger.warning("%s can't be compared with %s", reference.name, base, exc_info=True)
        found = Judgement("unprovable", f"The weights of {base} can't be understood ({type(error).__name__}).")
    logger.info("%s of %s and %s: %s. %s", reference.name, reference.repo_id, base, found.verdict, found.detail)
    return Proof(reference.key, base, sha, found.verdict, found.detail, salt, now)


def _judge(reader: _Reader, hub: HubDoor, reference: Variant, base: str, sha: str, draw: Draw) -> Judgement:
    reader.ask()
    files = {file.path: file for file in hub.files(base, revision=sha)}
    config = _config(reader, base, files, sha)
    if not config:
        raise _Unprovable(f"{base} has no config.json that can be read.")
    if config.get("quantization_config"):
        raise _Unprovable(f"{base} is stored quantized itself.")
    headers = _gguf_headers(reader, reference, draw)
    kv = headers[0][1].kv
    arch = headers[0][1].architecture or ""
    rules = rules_of(config)
    values = text_config(config)
    if said := settings_difference(kv, arch, values):
        return Judgement("differs" if rules.known else "unprovable", f"{said[:1].upper()}{said[1:]}.")
    tensors = {tensor.name: (file, header, tensor) for file, header in headers for tensor in header.tensors}
    file_of, known = _base_tensors(reader, base, files, sha)
    counterparts = _counterparts(Names(arch, _n_blocks(kv, arch)), file_of, tensors)
    made: list[str] = []
    for name in [name for name in tensors if name.startswith("rope_f")]:
        file, header, tensor = tensors.pop(name)
        at, n = header.data_start + tensor.offset, min(tensor.n_bytes, 1 << 16)
        raw = reader.range(reference.repo_id, file.path, reference.revision, at, n) if n else b""
        if said := differing_generated(name, raw, tensor.type_name, values):
            made.append(said)
    n_files = min(_MAX_FILES, len(set(file_of.values())))
    pieces, missing = choose_pieces(
        [tensor for _, _, tensor in tensors.values()],
        counterparts,
        file_of,
        draw,
        # A long header or two take a second request.
        n_pieces=min(_PIECES, (MAX_REQUESTS - reader.requests - n_files - 2) // 2),
        n_files=n_files,
    )
    uncovered = made + [f"{role} has no counterpart" for role in missing]
    compared: list[Compared] = []
    n_bytes = 0
    for piece in pieces:
        file, header, tensor = tensors[piece.tensor]
        source = known(piece.counterpart.name)
        span = span_of(piece, tensor, source, rules, values, draw) if source else f"{piece.tensor} can't be compared"
        if not isinstance(span, Span):
            uncovered.append(span)
            continue
        n_bytes += span.gguf_bytes + span.base_bytes
        if n_bytes > MAX_BYTES:
            uncovered.append(f"pieces of more than {MAX_BYTES >> 20} MiB would have to be read")
            break
        at = header.data_start + span.gguf_offset
        ours = reader.range(reference.repo_id, file.path, reference.revision, at, span.gguf_bytes)
        theirs = reader.range(base, file_of[piece.counterpart.name], sha, span.base_offset, span.base_bytes)
        different = n_different(span, ours, theirs)
        compared.append(Compared(piece, span.gguf_bytes, span.n_values, different))
        if different:
            break
    total = sum(tensor.n_bytes for _, _, tensor in tensors.values())
    return judge(compared, rules=rules, uncovered=uncovered, n_bytes=total)


def _config(reader: _Reader, base: str, files: Mapping[str, RepoFile], sha: str) -> dict[str, Any]:
    """The base model's ``config.json``; empty where there is none to be read."""
    file = files.get("config.json")
    if file is None:
        return {}
    try:
        found = json.loads(reader.whole(base, file, sha, limit=_MAX_CONFIG))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _gguf_headers(reader: _Reader, reference: Variant, draw: Draw) -> list[tuple[RepoFile, GGUFHeader]]:
    """The headers of the reference's files; of many, of the first and some others by lot."""
    first, *others = reference.files
    chosen = draw.some([file.path for file in others], _MAX_FILES - 1)
    found = []
    for file in [first, *(file for file in others if file.path in chosen)]:
        read = reader.of(reference.repo_id, file, reference.revision)
        found.append((file, read_gguf_header(read, size=file.size, name=file.path)))
    return found


def _n_blocks(kv: Mapping[str, Any], arch: str) -> int:
    count = kv.get(f"{arch}.block_count")
    return count if type(count) is int else 0


def _base_tensors(
    reader: _Reader, base: str, files: Mapping[str, RepoFile], sha: str
) -> tuple[dict[str, str], Callable[[str], SafeTensor | None]]:
    """The file of each tensor of the base model, and where one lies in it: headers are read as they are needed."""
    headers: dict[str, dict[str, SafeTensor]] = {}

    def header(path: str) -> dict[str, SafeTensor]:
        if path not in headers:
            if path not in files:
                raise _Unprovable(f"{base} has no {path}, which its index names.")
            file = files[path]
            headers[path] = safetensors.read_header(reader.of(base, file, sha), size=file.size, name=path)
        return headers[path]

    if safetensors.INDEX in files:
        data = reader.whole(base, files[safetensors.INDEX], sha, limit=safetensors.MAX_INDEX)
        file_of = safetensors.parse_index(data, name=safetensors.INDEX)
    elif safetensors.SINGLE in files:
        file_of = dict.fromkeys(header(safetensors.SINGLE), safetensors.SINGLE)
    else:
        raise _Unprovable(f"{base} has no safetensors to compare with.")
    return file_of, lambda name: header(file_of[name]).get(name)


def _counterparts(
    names: Names, file_of: Mapping[str, str], tensors: Mapping[str, tuple[RepoFile, GGUFHeader, Tensor]]
) -> dict[str, Sequence[Counterpart]]:
    """What each of the GGUF's tensors was made from, by name."""
    found: dict[str, list[Counterpart]] = defaultdict(list)
    for name in file_of:
        if (place := names.of(name)) and place[0] in tensors:
            found[place[0]].append(Counterpart(name, place[1]))
    if "output.weight" in tensors and "output.weight" not in found:
        # A head that the checkpoint shares with its embeddings.
        found["output.weight"] = list(found.get("token_embd.weight", ()))
    return {
        # A tensor that two others claim to be made into is neither's.
        name: those
        for name, those in found.items()
        if len(those) == len({one.expert for one in those})
    }
