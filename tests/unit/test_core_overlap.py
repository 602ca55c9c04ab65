"""Whether the text that an imatrix was made from is the one that is measured on."""

from __future__ import annotations

from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from core.audit import Inspection, flags_under, inspect, overlap_flag
from core.gguf_header import GGUFHeader, Tensor
from core.protocol import DEMO_TEXT, WIKITEXT2_TEST, Corpus, LocalSource

IMATRIX = {"quantize__imatrix__file": "i.gguf", "quantize__imatrix__chunks_count": 125}


def tensor(name: str, kind: str) -> Tensor:
    block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return Tensor(name, (256, 4), kind, 0, 1024 // block * n_bytes)


def audit(*tensors: Tensor, **kv: Any) -> Inspection:
    known = {"general.architecture": "llama"} | {key.replace("__", "."): value for key, value in kv.items()}
    return inspect([GGUFHeader(3, known, tensors, 1024)], size_bytes=5000, name="M.gguf")


#: A path as long as llama.cpp lets one stand in a header, so that what follows may be cut.
FAR = "/" + "x" * 100 + "/"


@pytest.mark.parametrize(
    ("dataset", "corpus", "flagged"),
    [
        # wikitext's test split, by the names that it goes by (wikitext-103 has the same one)
        ("wiki.test.raw", WIKITEXT2_TEST, True), ("/data/wikitext-2-raw/wiki.test.raw", WIKITEXT2_TEST, True),
        (r"C:\Users\me\WIKI.TEST.RAW", WIKITEXT2_TEST, True), ("wikitext-2-raw-v1 test", WIKITEXT2_TEST, True),
        ("wiki_test.txt", WIKITEXT2_TEST, True), ("wikitest.txt", WIKITEXT2_TEST, True),
        ("wikitext-103-raw/wiki.test.raw", WIKITEXT2_TEST, True), ("groups_merged-wiki.test.raw", WIKITEXT2_TEST, True),
        ("Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet", WIKITEXT2_TEST, True),
        ("wiki.test.raw", Corpus(name="wiki.test.raw", sha256="1" * 64), True),
        (FAR + "y" * 16 + "/wiki.test", WIKITEXT2_TEST, True), (FAR + "y" * 14 + "/wiki.test.r", WIKITEXT2_TEST, True),
        # not the test split, or not wikitext
        ("wiki.train.raw", WIKITEXT2_TEST, False), ("wikitext-2-raw/wiki.valid.raw", WIKITEXT2_TEST, False),
        ("/home/test/wikitext-2-raw/wiki.train.raw", WIKITEXT2_TEST, False), ("wikitext.txt", WIKITEXT2_TEST, False),
        ("wikitext-train-vs-test.txt", WIKITEXT2_TEST, False), ("wikitext_ja.test.txt", WIKITEXT2_TEST, False),
        ("wiki_latest.txt", WIKITEXT2_TEST, False), ("wikipedia-test.txt", WIKITEXT2_TEST, False),
        ("/wikitext/code_test.txt", WIKITEXT2_TEST, False), ("test.txt", WIKITEXT2_TEST, False),
        ("calibration_datav3.txt", WIKITEXT2_TEST, False), ("", WIKITEXT2_TEST, False), ("///", WIKITEXT2_TEST, False),
        (FAR + "y" * 20 + "/wiki.t", WIKITEXT2_TEST, False), ("wiki.test.raw", DEMO_TEXT, False),
        # any other text: by its own name or its file's
        ("/x/heldout.txt", DEMO_TEXT, True), ("heldout", DEMO_TEXT, True), ("train.txt", DEMO_TEXT, False),
        ("a/Calib.TXT", Corpus(name="calib.txt", sha256="1" * 64), True),
        ("calib.txt", Corpus(name="calib", sha256="1" * 64), True),
        ("calib2.txt", Corpus(name="calib.txt", sha256="1" * 64), False),
        ("calib.md", Corpus(name="calib.txt", sha256="1" * 64), False),
    ],
)  # fmt: skip
def test_an_imatrix_of_the_text_that_is_measured_on(dataset: str, corpus: Corpus, flagged: bool) -> None:
    found = audit(tensor("a.weight", "Q4_K"), quantize__imatrix__dataset=dataset)
    flag = overlap_flag(found, corpus)
    assert (flag is not None) == flagged
    assert flags_under(found, corpus) == ([flag] if flag else [])
    if flag:
        assert flag.code == "imatrix-overlap" and corpus.name in flag.detail and "flatter" in flag.detail


def test_overlap_goes_by_the_file_that_the_text_is_taken_from() -> None:
    corpus = Corpus(name="our code", sha256="1" * 64)
    found = audit(tensor("a.weight", "Q2_K"), quantize__imatrix__dataset="code.txt")
    assert overlap_flag(found, corpus) is None
    assert overlap_flag(found, corpus, LocalSource(path="/texts/code.txt")) is not None


@pytest.mark.parametrize("kv", [{}, IMATRIX, {"quantize__imatrix__dataset": 7}])
def test_without_a_dataset_nothing_overlaps(kv: dict[str, Any]) -> None:
    found = audit(tensor("a.weight", "Q2_K"), **kv)
    assert overlap_flag(found, WIKITEXT2_TEST) is None and flags_under(found, WIKITEXT2_TEST) == found.flags


@given(st.text(max_size=140), st.text(max_size=40))
def test_any_name_is_looked_at_without_falling_over(dataset: str, name: str) -> None:
    found = audit(tensor("a.weight", "Q4_K"), quantize__imatrix__dataset=dataset)
    overlap_flag(found, Corpus(name=name, sha256="1" * 64))
    assert overlap_flag(found, WIKITEXT2_TEST) is None or "test" in dataset.lower()
