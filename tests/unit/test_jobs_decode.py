"""How chunks are cut into decodes and rows into blocks, and the small parts that a pass over them is made of."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BaselineError, CorpusError, NonFiniteLogitsError, SettingsError, StorageError
from jobs import kernel
from jobs.baseline.head import padded
from jobs.baseline.kld_file import KldShape
from jobs.baseline.states_file import restored, signed, stored
from jobs.baseline.states_rows import pieces
from jobs.checkpoint import Checkpoint
from jobs.decode import BatchShape, batch_shape, chunk_tokens, fed_tokens, groups, schedule, steps
from jobs.scoring import BLOCK_ELEMENTS, RowPool, Table, blocks, check_verdicts
from tests import reference_rows as reference

# --- packing


def test_packing_is_llama_perplexitys() -> None:
    assert batch_shape(n_ctx=512, n_batch=2048, n_ubatch=512).n_seq == 4
    assert batch_shape(n_ctx=4096, n_batch=2048, n_ubatch=512).n_seq == 1
    assert batch_shape(n_ctx=4096, n_batch=2048, n_ubatch=512).n_batch == 2048
    assert batch_shape(n_ctx=512, n_batch=512, n_ubatch=2048).n_ubatch == 512
    with pytest.raises(SettingsError, match="multiple"):
        batch_shape(n_ctx=600, n_batch=2048, n_ubatch=512)


@pytest.mark.parametrize(("n_ctx", "n_batch", "n_ubatch"), [(0, 512, 512), (2, 512, 512), (512, 0, 512), (512, 512, 0)])
def test_sizes_that_leave_nothing_to_score_are_refused(n_ctx: int, n_batch: int, n_ubatch: int) -> None:
    with pytest.raises(SettingsError):
        batch_shape(n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch)


def test_chunks_drop_the_tail_and_need_two() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    assert chunk_tokens(tokens, n_ctx=300, chunks=-1).shape == (3, 300)
    assert chunk_tokens(tokens, n_ctx=300, chunks=2).shape == (2, 300)
    with pytest.raises(CorpusError, match="at least 1200"):
        chunk_tokens(tokens, n_ctx=600, chunks=-1)
    with pytest.raises(SettingsError, match="0 chunks"):
        chunk_tokens(tokens, n_ctx=300, chunks=0)


def test_the_first_token_of_a_chunk_is_replaced_for_the_model_only() -> None:
    tokens = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert fed_tokens(tokens, bos=77)[:, 0].tolist() == [77, 77, 77]
    assert tokens[:, 0].tolist() == [0, 4, 8]
    np.testing.assert_array_equal(fed_tokens(tokens, bos=77)[:, 1:], tokens[:, 1:])
    assert fed_tokens(tokens, bos=None) is tokens


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 50))
def test_groups_cover_every_chunk_once(n_chunks: int, n_seq: int, done: int) -> None:
    start = min(n_chunks, done // n_seq * n_seq)
    found = [list(group) for group in groups(n_chunks, n_seq, start=start)]
    assert [i for group in found for i in group] == list(range(start, n_chunks))
    assert all(len(group) <= n_seq for group in found)
    assert all(len(group) == n_seq for group in found[:-1])


@st.composite
def shapes(draw: st.DrawFn) -> BatchShape:
    """Shapes as settings give them: several chunks to a batch, or several batches to a chunk."""
    n_ctx = draw(st.integers(4, 200))
    if draw(st.booleans()):
        n_batch = n_ctx * draw(st.integers(1, 6))
    else:
        n_batch = draw(st.integers(1, n_ctx))
    return batch_shape(n_ctx=n_ctx, n_batch=n_batch, n_ubatch=draw(st.integers(1, 300)))


@given(shapes(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_groups_decodes_are_its_tokens_in_order_of_computation(shape: BatchShape, data: st.DataObject) -> None:
    n_seq = data.draw(st.integers(1, shape.n_seq))
    plan = steps(shape, n_seq)
    seen: dict[int, list[int]] = {sequence: [] for sequence in range(n_seq)}
    for step in plan:
        n = len(step.positions)
        assert len(step.sequences) == len(step.outputs) == n > 0
        if n_seq <= shape.n_ubatch:
            assert n <= shape.n_ubatch
        assert n <= shape.most_tokens(n_seq) <= max(shape.n_batch, shape.n_seq)
        # As many tokens of each sequence, one sequence after the other: the order in which llama.cpp computes them.
        assert step.sequences.tolist() == sorted(step.sequences.tolist())
        ranges = {tuple(step.positions[step.sequences == sequence].tolist()) for sequence in range(n_seq)}
        assert len(ranges) == 1
        (positions,) = ranges
        assert list(positions) == list(range(positions[0], positions[-1] + 1))
        # llama.cpp begins a new micro-batch where a logical batch begins.
        if shape.n_batch < shape.n_ctx:
            assert positions[0] // shape.n_batch == positions[-1] // shape.n_batch
        for sequence in range(n_seq):
            seen[sequence] += positions
    assert all(positions == list(range(shape.n_ctx)) for positions in seen.values())


@given(shapes(), st.data())
@settings(max_examples=300, deadline=None)
def test_every_scored_position_is_asked_for_exactly_once(shape: BatchShape, data: st.DataObject) -> None:
    n_seq = data.draw(st.integers(1, shape.n_seq))
    layout = KldShape(shape.n_ctx, 1, 1)
    asked: list[tuple[int, int]] = []
    for step in steps(shape, n_seq):
        where = np.flatnonzero(step.outputs)
        np.testing.assert_array_equal(step.chunks, step.sequences[where])
        np.testing.assert_array_equal(step.rows, step.positions[where] - layout.first)
        its = list(zip(step.chunks.tolist(), step.rows.tolist(), strict=True))
        assert bool(step.spans) == bool(its)
        asked += its
        # Spans say the same, as runs: outputs are numbered without gaps.
        told = [(chunk, row + i) for chunk, row, _, length in step.spans for i in range(length)]
        assert told == its
        assert [output for _, _, output, _ in step.spans] == np.cumsum(
            [0, *(length for *_, length in step.spans)]
        ).tolist()[:-1]
    wanted = {(chunk, row) for chunk in range(n_seq) for row in range(layout.rows_per_chunk)}
    assert set(asked) == wanted and len(asked) == len(wanted)
    for chunk in range(n_seq):
        mine = [row for its, row in asked if its == chunk]
        assert mine == sorted(mine)


def test_a_full_batch_is_cut_as_llama_cpp_cuts_it() -> None:
    plan = steps(batch_shape(n_ctx=512, n_batch=2048, n_ubatch=512), 4)
    assert [len(step.positions) for step in plan] == [512, 512, 512, 512]
    assert [len(step.rows) for step in plan] == [0, 0, 512, 508]
    assert plan[2].spans == tuple((chunk, 0, 128 * chunk, 128) for chunk in range(4))
    # The last group of three: 512 // 3 positions each.
    plan = steps(batch_shape(n_ctx=512, n_batch=2048, n_ubatch=512), 3)
    assert [len(step.positions) for step in plan] == [510, 510, 510, 6]


# --- the order of decodes


def in_flight(order: list[tuple[int, int]], counts: list[list[bool]]) -> None:
    """Assert what any order must keep: see the names of the tests."""
    assert sorted(order) == [(g, s) for g, of_group in enumerate(counts) for s in range(len(of_group))]
    done = [0] * len(counts)
    for group, step in order:
        assert step == done[group], "the order within a group"
        done[group] += 1
        begun = {g for g, n in enumerate(done) if n > 0}
        unfinished = {g for g in begun if done[g] < len(counts[g])}
        assert len(unfinished) <= 2
        # A group's slot of the KV cache is that of the one two before it.
        assert all(done[g - 2] == len(counts[g - 2]) for g in begun if g >= 2)
        # A decode with outputs ends the logits of the group before, which must be complete.
        if counts[group][step]:
            assert all(done[g] == len(counts[g]) for g in range(group))


outputs_by_step = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=8)


@given(outputs_by_step)
@settings(max_examples=300)
def test_without_overlap_groups_follow_each_other(counts: list[list[bool]]) -> None:
    order = list(schedule(counts, overlap=False))
    assert order == sorted(order)
    in_flight(order, counts)


@given(outputs_by_step)
@settings(max_examples=500)
def test_with_overlap_the_next_group_begins_while_the_last_is_scored(counts: list[list[bool]]) -> None:
    order = list(schedule(counts, overlap=True))
    in_flight(order, counts)


@given(shapes(), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_overlap_of_real_groups(shape: BatchShape, n_chunks: int) -> None:
    plans = [steps(shape, len(group)) for group in groups(n_chunks, shape.n_seq)]
    counts = [[bool(step.spans) for step in plan] for plan in plans]
    order = list(schedule(counts, overlap=True))
    in_flight(order, counts)


def test_overlap_puts_decodes_without_outputs_between() -> None:
    counts = [[False, False, True, True]] * 3
    order = list(schedule(counts, overlap=True))
    assert order == [
        *((0, 0), (0, 1), (0, 2), (1, 0), (0, 3), (1, 1)),
        *((1, 2), (2, 0), (1, 3), (2, 1), (2, 2), (2, 3)),
    ]


# --- rows in blocks


spans_of_a_step = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=6).map(
    lambda given_: tuple(
        (chunk, row, sum(length for _, length in given_[:chunk]), length) for chunk, (row, length) in enumerate(given_)
    )
)


def outputs_of(spans: object) -> list[tuple[int, int, int]]:
    """(chunk, row, output) of each row of spans."""
    return [(chunk, row + i, output + i) for chunk, row, output, n in spans for i in range(n)]  # type: ignore[attr-defined]


@given(spans_of_a_step, st.integers(1, 400))
@settings(max_examples=200)
def test_pieces_are_full_and_in_order(spans: tuple[tuple[int, int, int, int], ...], size: int) -> None:
    parts = list(pieces(spans, size))
    assert [row for part in parts for row in outputs_of(part)] == outputs_of(spans)
    sizes = [sum(span[3] for span in part) for part in parts]
    assert all(n == size for n in sizes[:-1]) and 0 < sizes[-1] <= size
    # A part's rows are next to each other in the logits, so that the head's rows can be found by number.
    for part in parts:
        outputs = [output for *_, output in outputs_of(part)]
        assert outputs == list(range(outputs[0], outputs[0] + len(outputs)))


@given(spans_of_a_step, st.integers(1, 300_000))
@settings(max_examples=200)
def test_blocks_cover_every_row_once(spans: tuple[tuple[int, int, int, int], ...], n_vocab: int) -> None:
    parts = list(blocks(spans, n_vocab))
    assert outputs_of(parts) == outputs_of(spans)
    assert all(n == 1 or n * n_vocab <= BLOCK_ELEMENTS for *_, n in parts)


# --- the pool


def test_a_pool_runs_every_task_once() -> None:
    with RowPool(3) as pool:
        for n in (0, 1, 2, 3, 50):
            ran: list[int] = []
            pool.run([partial(ran.append, i) for i in range(n)])
            assert sorted(ran) == list(range(n))


def test_an_error_is_told_when_no_thread_is_at_work_any_more() -> None:
    """What the others work on (the context's logits, the file) is let go of after the error."""
    at_work, finished = threading.Event(), threading.Event()

    def slow() -> None:
        at_work.set()
        time.sleep(0.3)
        finished.set()

    def fails() -> None:
        at_work.wait()
        raise BaselineError("broken")

    with RowPool(2) as pool:
        # Whichever thread is asked first.
        for tasks in ([fails, slow], [slow, fails]):
            at_work.clear(), finished.clear()
            with pytest.raises(BaselineError, match="broken"):
                pool.run(tasks)
            assert finished.is_set()


# --- tables and verdicts


@pytest.mark.parametrize("both", [False, True])
def test_a_tables_groups_are_packed_and_put_back(both: bool) -> None:
    random = np.random.default_rng(3)
    table, other = Table.empty(7, 5, both=both), Table.empty(7, 5, both=both)
    for array in table.arrays:
        array[...] = random.integers(0, 2, array.shape) if array.dtype == bool else random.integers(0, 99, array.shape)
    for group in groups(7, 3):
        other.unpack(group, table.pack(group))
    for mine, its in zip(table.arrays, other.arrays, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_verdicts_name_the_share_and_the_first_place() -> None:
    verdicts = np.zeros((4, 100), np.int64)
    check_verdicts("m.gguf", verdicts, first=128)
    verdicts[2, 7:9] = kernel.NOT_FINITE
    with pytest.raises(
        NonFiniteLogitsError, match=r"2 of 400 scored positions \(0\.5 %\).*NaN.*chunk 2 at position 135"
    ):
        check_verdicts("m.gguf", verdicts, first=128)
    verdicts[:] = 0
    verdicts[3, 0] = kernel.ZERO
    with pytest.raises(NonFiniteLogitsError, match=r"probability zero.*first in chunk 3 at position 128"):
        check_verdicts("m.gguf", verdicts, first=128)
    verdicts[1, 1] = kernel.CORRUPT
    with pytest.raises(BaselineError, match="chunk 1"):
        check_verdicts("m.gguf", verdicts, first=128)


# --- states as they are stored, and made ready for the head


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
    st.sampled_from([32, 64, 256]),
    st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 20.0, 1000.0, 2040.0]),
    st.sampled_from(["F16", "BF16", "F32"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_padding_makes_the_mean_square_a_power_of_four(
    seed: int, n_embd: int, pad: int, size: float, kind: str, outlier: bool
) -> None:
    random = np.random.default_rng(seed)
    states = random.normal(size=(7, n_embd))
    if outlier:
        states[:, 0] *= 30
    with np.errstate(invalid="ignore"):
        states *= size / np.sqrt((states**2).mean(axis=1, keepdims=True))
    states = restored(stored(states.astype(np.float32), kind), kind)
    wide = padded(states, n_embd + pad)
    np.testing.assert_array_equal(wide[:, :n_embd], states)
    # As llama.cpp has it: squares in f32, their sum in f64, the mean rounded to f32.
    mean = ((wide * wide).sum(axis=1, dtype=np.float64) / wide.shape[1]).astype(np.float32)
    assert (mean == np.float32(2**22)).all()
    assert np.isfinite(wide.astype(np.float16)).all(), "weights of zero do not help against infinity"


def test_states_too_large_for_the_padding_are_left_alone() -> None:
    states = np.full((2, 64), 1e5, np.float32)
    wide = padded(states, 96)
    np.testing.assert_array_equal(wide[:, :64], states)
    assert (wide[:, 64:] == 0).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_bf16_is_rounded_half_to_even(seed: int) -> None:
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**32, 300, dtype=np.uint32)
    bits[::3] = (bits[::3] & 0xFFFF0000) | 0x8000  # halfway between two
    values = bits.view(np.float32)
    found = stored(values.reshape(3, -1), "BF16")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, reference.bfloat16(values.reshape(3, -1)))
    back = restored(found, "BF16").ravel()
    finite = np.isfinite(values) & np.isfinite(back)
    off = np.abs(back[finite].astype(np.float64) - values[finite])
    assert (off <= np.maximum(np.abs(values[finite]) * 2.0**-8, 2.0**-133)).all()
    assert np.isnan(back[np.isnan(values)]).all()
    again = stored(restored(found, "BF16"), "BF16").ravel()
    np.testing.assert_array_equal(again, np.where(np.isnan(back), 0x7FC0, found.ravel()))


def test_states_of_plain_floats_are_kept_as_they_are() -> None:
    values = np.array([[1.0, 1e-9, 65504, 7e4, -0.1]], np.float32)
    np.testing.assert_array_equal(restored(stored(values, "F32"), "F32"), values)
    half = restored(stored(values, "F16"), "F16")
    np.testing.assert_array_equal(half, [[1.0, np.float16(1e-9), 65504, np.inf, np.float16(-0.1)]])
    assert half[0, 3] == np.inf
    ours = restored(stored(half, "F16"), "F16")
    np.testing.assert_array_equal(ours, half)


@given(st.integers(0, 2**64 - 1))
def test_sums_fit_ggufs_signed_numbers(value: int) -> None:
    assert -(2**63) <= signed(value) < 2**63
    assert signed(value) % 2**64 == value


# --- checkpoints


def kept(path: Path, identity: object) -> list[bytes]:
    checkpoint = Checkpoint(path, identity)
    try:
        return list(checkpoint.records)
    finally:
        checkpoint.close()


def write(path: Path, identity: object, records: list[bytes]) -> None:
    checkpoint = Checkpoint(path, identity)
    for record in records:
        checkpoint.append(record)
    checkpoint.close()


def test_records_outlive_the_run(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "c"
    records = [b"one", b"", b"x" * 70_000]
    write(path, {"a": 1}, records)
    assert kept(path, {"a": 1}) == records
    write(path, {"a": 1}, [b"four"])
    assert kept(path, {"a": 1}) == [*records, b"four"]
    assert kept(path, {"a": 2}) == [], "another run's"
    assert kept(path, {"a": 1}) == [], "which takes its place"


def test_a_run_that_ended_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c", 1)
    checkpoint.append(b"x")
    checkpoint.remove()
    checkpoint.remove()
    checkpoint.close()
    assert not list(tmp_path.iterdir())
    nothing = Checkpoint(None, 1)
    nothing.append(b"x")
    nothing.keep_only(0)
    nothing.remove()


def test_what_is_not_whole_is_dropped_with_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write(path, 1, [b"a", b"b", b"c"])
    checkpoint = Checkpoint(path, 1)
    checkpoint.keep_only(5)
    checkpoint.keep_only(1)
    checkpoint.append(b"d")
    checkpoint.close()
    assert kept(path, 1) == [b"a", b"d"]


def test_records_are_synced_after_what_they_speak_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.checkpoint.SYNC_INTERVAL", 0.0)
    told: list[str] = []
    monkeypatch.setattr("os.fsync", lambda file: told.append("checkpoint"))
    checkpoint = Checkpoint(tmp_path / "c", 1)
    checkpoint.append(b"x", before_sync=lambda: told.append("file"))
    checkpoint.close()
    assert told == ["file", "checkpoint"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        Checkpoint(tmp_path / "file" / "c", 1)
    with pytest.raises(StorageError, match="could not be written"):
        Checkpoint(tmp_path, 1)


RECORDS = [b"first record", b"", b"\0" * 40, bytes(range(256)), b"last"]


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    write(path, "identity", RECORDS)
    return path.read_bytes()


def test_any_truncation_leaves_a_prefix(tmp_path: Path, whole_checkpoint: bytes) -> None:
    path = tmp_path / "c"
    counts = []
    for end in range(len(whole_checkpoint) + 1):
        path.write_bytes(whole_checkpoint[:end])
        found = kept(path, "identity")
        assert found == RECORDS[: len(found)]
        counts.append(len(found))
    assert counts == sorted(counts) and counts[-1] == len(RECORDS) and counts[-2] == len(RECORDS) - 1


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_damage_leaves_a_prefix(
    tmp_path_factory: pytest.TempPathFactory, whole_checkpoint: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "c"
    damaged = bytearray(whole_checkpoint)
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
        damaged[bit // 8] ^= 1 << bit % 8
    damaged = damaged[: data.draw(st.integers(0, 4 * len(damaged)))] + data.draw(st.binary(max_size=40))
    path.write_bytes(damaged)
    found = kept(path, "identity")
    assert found == RECORDS[: len(found)]
    # And it goes on from there.
    write(path, "identity", [b"more"])
    assert kept(path, "identity") == [*found, b"more"]
