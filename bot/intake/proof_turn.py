"""One turn at a proof: reads headers, holds them against each other, and compares as many tensors as may be read."""

from __future__ import annotations

from collections.abc import Callable

from bot.hub.door import RepoDetail
from bot.intake.proof_reads import Base, Gguf, Pieces, Reader, UnprovableError
from bot.store.repos import Variant
from core.conversion import FLOATS, Mismatch, Names, Rules, differing_generated, rules_of, text_config
from core.conversion_settings import settings_difference
from core.correspondence import EMBEDDINGS, Correspondence, correspond
from core.gguf_walk import TOKENS, SkippedArray
from core.safetensors import MAX_HEADER
from core.tensor_proof import (
    Compared,
    Draw,
    Judgement,
    Piece,
    Plan,
    Seen,
    Span,
    in_turn,
    judge,
    n_different,
    sentence,
    span_of,
)  # fmt: skip


def take_turn(
    reader: Reader,
    detail: RepoDetail,
    reference: Variant,
    *,
    salt: str,
    seen: Seen,
    known: Callable[[str], Judgement | None],
) -> tuple[Seen, Judgement]:
    """One turn at a proof: (what was compared up to now, what that says).

    Args:
        detail: the base model's repo, with a commit.
        salt: what the sample is drawn with, beside the file, the commit and the turn's number.
        seen: what turns before this one compared; it counts where these were the same weights.
        known: what is known already of these weights of the base model, so that nothing is compared.

    Raises:
        UnprovableError, SafetensorsError, GGUFError, ValueError: one of the two can't be read, or is not what it says.
        HubError: the Hub gave no answer, or a bad one.
    """
    sha = str(detail.summary.sha)
    base = Base(reader, detail.summary.id, sha, {file.path: file for file in detail.files})
    if seen.weights != base.fingerprint:
        seen = Seen(weights=base.fingerprint)
    if judged := known(base.fingerprint):
        return seen, judged
    draw = Draw(reference.key, sha, salt, str(seen.turns))
    gguf = Gguf(reader, reference)
    rules = rules_of(base.config)
    config = text_config(base.config)
    shapes = {name: placed.tensor.shape for name, placed in gguf.tensors.items()}
    found: Mismatch | Correspondence | None = settings_difference(gguf.kv, gguf.architecture, config, rules)
    if found is None:
        names = Names(gguf.architecture, gguf.n_blocks)
        found = _other_tokens(gguf) or correspond(shapes, base.file_of, names, config, rules)
    if isinstance(found, Mismatch):
        return seen, Judgement("differs" if found.certain else "unprovable", sentence(found.said))
    for name in sorted(found.generated):
        placed = gguf.tensors[name]
        at, n = placed.data_start + placed.tensor.offset, min(placed.tensor.n_bytes, 1 << 16)
        raw = reader.range(reference.repo_id, placed.file.path, reference.revision, at, n) if n else b""
        if said := differing_generated(name, raw, placed.tensor.type_name, config):
            return seen, Judgement("unprovable", sentence(said))
    return _Turn(reader, reference, gguf, base, found, rules, draw).run(seen)


def _other_tokens(gguf: Gguf) -> Mismatch | None:
    """Words where the vocabulary has not as many tokens as the embeddings have rows."""
    tokens, placed = gguf.kv.get(TOKENS), gguf.tensors.get(EMBEDDINGS)
    rows = placed.tensor.shape[-1] if placed and placed.tensor.shape else None
    if isinstance(tokens, SkippedArray) and tokens.length == rows:
        return None
    return Mismatch("its vocabulary has not as many tokens as its embeddings have rows", False)


class _Turn:
    """One turn at a proof whose headers fit: which tensors it takes in, and what comparing them says."""

    def __init__(
        self,
        reader: Reader,
        reference: Variant,
        gguf: Gguf,
        base: Base,
        found: Correspondence,
        rules: Rules,
        draw: Draw,
    ) -> None:
        self._reader, self._reference, self._gguf, self._base = reader, reference, gguf, base
        self._counterparts, self._rules, self._draw = found.counterparts, rules, draw
        self._config = text_config(base.config)
        self._names = [name for name in gguf.tensors if name in found.counterparts]
        self._files = sorted({base.file_of[c.name] for those in found.counterparts.values() for c in those})
        self._plan = Plan(requests=0, n_bytes=0)
        self._spans: list[Span] = []
        self._uncovered: list[str] = []

    def run(self, seen: Seen) -> tuple[Seen, Judgement]:
        """Compare as much as may be read, and say what that and all before it gives."""
        for name in [name for name, one in self._gguf.tensors.items() if one.tensor.type_name not in FLOATS]:
            self._uncovered.append(f"{name} is kept in {self._gguf.tensors[name].tensor.type_name}")
        self._choose(seen)
        if not self._spans and not self._uncovered:
            raise UnprovableError("Its headers leave nothing of what one turn may read.")
        compared = [] if self._uncovered else self._compare()
        tensors = {name: number for number, name in enumerate(sorted(self._names))}
        files = {path: number for number, path in enumerate(self._files)}
        seen = Seen(
            seen.tensors | {tensors[one.piece.tensor] for one in compared},
            seen.files | {files[self._base.file_of[one.piece.counterpart.name]] for one in compared},
            seen.turns + 1,
            seen.values + sum(one.n_values for one in compared),
            seen.weights,
        )
        return seen, judge(
            compared,
            rules=self._rules,
            uncovered=self._uncovered,
            seen=seen,
            n_tensors=len(tensors),
            n_files=len(files),
        )

    def _choose(self, seen: Seen) -> None:
        """What is left of the tensors, then files that no tensor led to; all tensors anew where nothing is left."""
        number = {name: i for i, name in enumerate(sorted(self._names))}
        left = [name for name in self._names if number[name] not in seen.tensors]
        files = {path for i, path in enumerate(self._files) if i not in seen.files}
        for name in in_turn(left if left or files else self._names, self._draw):
            those = self._counterparts[name]
            if self._uncovered or not self._take(Piece(name, those[self._draw.below(len(those))])):
                return
        for path in sorted(files - {self._base.file_of[span.piece.counterpart.name] for span in self._spans}):
            inside = [
                Piece(name, one)
                for name, those in self._counterparts.items()
                for one in those
                if self._base.file_of[one.name] == path
            ]
            if self._uncovered or not self._take(inside[self._draw.below(len(inside))]):
                return

    def _take(self, piece: Piece) -> bool:
        """Take a piece in; False where it would be too much."""
        # A header takes two requests at most, and so does the piece.
        (requests, n_bytes), left = self._plan.cost, self._reader.left
        room = left[0] - requests >= 4 and left[1] - n_bytes >= 2 * MAX_HEADER
        if not room and not self._base.knows(piece.counterpart.name):
            return False
        source = self._base.tensor(piece.counterpart.name)
        placed = self._gguf.tensors[piece.tensor]
        span = (
            span_of(piece, placed.tensor, source, self._rules, self._config, self._draw)
            if source
            else f"{piece.counterpart.name[:100]} is not where the base model's index says"
        )
        if not isinstance(span, Span):
            self._uncovered.append(span)
            return True
        self._plan.requests, self._plan.n_bytes = self._reader.left
        if not self._plan.add(self._ranges(span)):
            return False
        self._spans.append(span)
        return True

    def _ranges(self, span: Span) -> dict[str, tuple[int, int]]:
        placed = self._gguf.tensors[span.piece.tensor]
        ours, theirs = placed.data_start + span.gguf_offset, span.base_offset
        return {
            f"gguf {placed.file.path}": (ours, ours + span.gguf_bytes),
            f"base {self._base.file_of[span.piece.counterpart.name]}": (theirs, theirs + span.base_bytes),
        }

    def _compare(self) -> list[Compared]:
        """The spans one after the other, up to the first that differs."""
        mine = {f"gguf {file.path}": (self._reference.repo_id, file.path, self._reference.revision)
                for file in self._reference.files}  # fmt: skip
        theirs = {f"base {path}": (self._base.repo_id, path, self._base.sha) for path in self._files}
        pieces = Pieces(self._reader, self._plan, mine | theirs)
        compared: list[Compared] = []
        for span in self._spans:
            ours, base = (pieces.get(file, start, end) for file, (start, end) in self._ranges(span).items())
            compared.append(Compared(span.piece, span.n_values, n_different(span, ours, base)))
            if compared[-1].n_different:
                break
        return compared
