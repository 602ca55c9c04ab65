"""What a job elsewhere is told crosses as one environment variable."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.canonical import fingerprint
from core.contract import QualitySpec
from core.errors import JobProtocolError
from core.remote_task import InputFile, OutputFolder, RemoteTask, TaskLimits, packed, unpacked

TASK = RemoteTask(
    nonce="ab" * 16,
    spec=QualitySpec(model="/models/m.gguf", baseline="/baselines/b.gguf", tokens_out="/out/t.parquet"),
    model_files=[InputFile(path="/models/m.gguf", size=7, sha256="0" * 64)],
    outputs=OutputFolder(path="/out", to="/bucket/job-1"),
    limits=TaskLimits(seconds=60),
)


def test_a_task_comes_back_as_it_was() -> None:
    text = packed(TASK)
    assert text.isascii() and " " not in text and unpacked(text) == TASK


@given(st.integers(0, len(packed(TASK)) - 1))
def test_a_cut_task_is_refused(n: int) -> None:
    with pytest.raises(JobProtocolError):
        unpacked(packed(TASK)[:n])


@given(st.text(max_size=50))
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(JobProtocolError):
        unpacked(text)


def test_a_task_of_another_version_is_refused_with_what_to_do() -> None:
    newer = TASK.model_dump_json().replace('"limits"', '"colour":1,"limits"', 1)
    with pytest.raises(JobProtocolError, match=r"colour.*image of the bot's version"):
        unpacked(base64.b64encode(zlib.compress(newer.encode())).decode())


def test_a_bomb_and_a_task_too_large_are_refused() -> None:
    with pytest.raises(JobProtocolError):
        unpacked(base64.b64encode(zlib.compress(b" " * (64 << 20))).decode())
    many = [InputFile(path=f"/{i}", size=i, sha256=fingerprint(i)) for i in range(9000)]
    with pytest.raises(ValueError, match="does not fit"):
        packed(TASK.model_copy(update={"model_files": many}))
