"""The line by which a job elsewhere tells its end: whole and its own, or refused."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.contract import ErrorEvent, ProgressEvent, QuantizeResult, ResultEvent
from core.errors import JobProtocolError
from core.frame import MAX_LINE, MAX_PAYLOAD, RESULT, Ended, Output, frame, progress_line, read_line

NONCE = "0123456789abcdef" * 2
OTHER = "f" * 32
TEXT = st.text(max_size=60)
ERRORS = st.builds(ErrorEvent, type=TEXT, message=TEXT)
RESULTS = st.builds(
    ResultEvent,
    result=st.builds(QuantizeResult, path=TEXT, file_type=TEXT, size_bytes=st.integers(0, 1 << 60)),
)
OUTPUTS = st.lists(
    st.builds(
        Output, path=TEXT, size=st.integers(0, 1 << 50), sha256=st.text("0123456789abcdef", min_size=64, max_size=64)
    ),
    max_size=3,
)
RESULT_EVENT = ResultEvent(result=QuantizeResult(path="a.gguf", file_type="Q4_K_M", size_bytes=7))


def made(payload: bytes, *, nonce: str = NONCE, checksum: str | None = None) -> str:
    """A line with any payload."""
    packed = base64.b64encode(zlib.compress(payload)).decode()
    return f"{RESULT} v1 {nonce} {checksum or hashlib.sha256(payload).hexdigest()} {packed}"


@given(st.one_of(ERRORS, RESULTS), OUTPUTS)
def test_an_end_comes_back_as_it_was(event: ErrorEvent | ResultEvent, outputs: list[Output]) -> None:
    line = frame(event, NONCE, outputs=outputs)
    assert line.isascii() and len(line.splitlines()) == 1
    assert read_line(line, NONCE) == Ended(event=event, outputs=outputs)
    assert read_line(f"  {line}\r\n", NONCE) == read_line(line, NONCE)


@given(st.builds(ProgressEvent, stage=TEXT, done=st.integers(), total=st.integers(0, 1 << 60), note=TEXT))
def test_a_step_comes_back_as_it_was(event: ProgressEvent) -> None:
    line = progress_line(event)
    assert line.isascii() and len(line.splitlines()) == 1
    assert read_line(line, NONCE) == event == read_line(f"(job pid=7) {line}\n", OTHER)


def test_the_words_of_a_step_are_cut_and_a_damaged_step_says_nothing() -> None:
    line = progress_line(ProgressEvent(stage="s" * 9000, done=1, total=2, note="n" * 9000))
    read = read_line(line, NONCE)
    assert isinstance(read, ProgressEvent) and len(read.stage) == len(read.note) == 500
    assert read_line(line[:-5], NONCE) is None
    assert read_line(line + " " * 9000 + "x", NONCE) is None


@given(st.data())
def test_a_line_cut_anywhere_is_refused(data: st.DataObject) -> None:
    line = frame(RESULT_EVENT, NONCE)
    cut = line[: data.draw(st.integers(len(RESULT) + 1, len(line) - 1))]
    with pytest.raises(JobProtocolError):
        read_line(cut, NONCE)


@pytest.mark.parametrize("n", range(1, len(RESULT)))
def test_less_than_our_word_is_not_ours(n: int) -> None:
    assert read_line(RESULT[:n], NONCE) is None


@settings(max_examples=300)
@given(st.data())
def test_a_changed_character_never_gives_another_end(data: st.DataObject) -> None:
    line = frame(RESULT_EVENT, NONCE)
    at = data.draw(st.integers(0, len(line) - 1))
    changed = line[:at] + data.draw(st.characters(min_codepoint=32, max_codepoint=126)) + line[at + 1 :]
    try:
        read = read_line(changed, NONCE)
    except JobProtocolError:
        return
    assert read is None or read == Ended(event=RESULT_EVENT)


def test_anothers_nonce_is_refused() -> None:
    with pytest.raises(JobProtocolError, match="nonce"):
        read_line(frame(RESULT_EVENT, OTHER), NONCE)
    with pytest.raises(JobProtocolError, match="nonce"):
        read_line(frame(RESULT_EVENT, OTHER).replace(OTHER, "é" * 32), NONCE)


def test_a_wrong_checksum_is_refused() -> None:
    payload = Ended(event=RESULT_EVENT).model_dump_json().encode()
    with pytest.raises(JobProtocolError, match="checksum"):
        read_line(made(payload, checksum="0" * 64), NONCE)


def test_another_version_is_told_as_such() -> None:
    line = frame(RESULT_EVENT, NONCE).replace(" v1 ", " v2 ")
    with pytest.raises(JobProtocolError, match="version 'v2'"):
        read_line(line, NONCE)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b"{}",
        b'{"event":{"event":"progress","stage":"x","done":1,"total":2}}',
        b'{"event":{"event":"result","result":{"kind":"quality"}}}',
        b'{"event":{"event":"error","type":"x","message":"y"},"more":1}',
        json.dumps({"event": {"event": "error", "type": "x", "message": "\udcff"}}).encode(),
        b"\xff\xfe",
    ],
)
def test_what_is_not_the_contract_is_refused(payload: bytes) -> None:
    with pytest.raises(JobProtocolError):
        read_line(made(payload), NONCE)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(b" " * (8 * MAX_PAYLOAD), 9)
    assert len(bomb) < 200_000
    line = f"{RESULT} v1 {NONCE} {'0' * 64} {base64.b64encode(bomb).decode()}"
    with pytest.raises(JobProtocolError, match="unpack"):
        read_line(line, NONCE)


def test_what_is_too_large_is_neither_written_nor_read() -> None:
    with pytest.raises(JobProtocolError, match="larger than any of ours"):
        read_line(f"{RESULT} v1 {NONCE} {'0' * 64} {'A' * MAX_LINE}", NONCE)
    with pytest.raises(ValueError, match="does not fit"):
        frame(ErrorEvent(type="x", message="y" * (MAX_PAYLOAD + 1)), NONCE)
    with pytest.raises(ValueError, match="32 hex digits"):
        frame(RESULT_EVENT, "not a nonce")


@given(TEXT)
def test_other_text_is_not_ours(text: str) -> None:
    assert read_line(text, NONCE) is None


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30), st.lists(TEXT, max_size=4))
def test_a_line_within_other_text_is_found(before: str, others: list[str]) -> None:
    line = frame(RESULT_EVENT, NONCE)
    log = "\n".join([*others, f"{before} {line}", *others])
    read = [found for one in log.split("\n") if (found := read_line(one, NONCE)) is not None]
    assert read == [Ended(event=RESULT_EVENT)]


def test_talk_about_our_line_is_not_one() -> None:
    assert read_line(f"warning: no {RESULT} v1 line was printed", NONCE) is None
    assert read_line(f"retry: {frame(RESULT_EVENT, OTHER)}", NONCE) is None


def test_a_surrogate_in_a_message_does_not_lose_the_end() -> None:
    line = frame(ErrorEvent(type="GGUFError", message="bad name \udcff."), NONCE)
    read = read_line(line, NONCE)
    assert isinstance(read, Ended) and isinstance(read.event, ErrorEvent) and read.event.message.startswith("bad name")
