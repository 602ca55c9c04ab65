"""The figures in a section's hidden comment: all of them there and back; nothing gets out, anything may come in."""

from __future__ import annotations

import json

import pytest
from golden import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ENDPOINT, GPU, LADDER, PROTOCOL, row, sha

from bot.publish import card as cards
from bot.publish.data_block import (
    FILE,
    LIMIT,
    DataBlock,
    data_file,
    data_of,
    decode,
    decode_file,
    encode,
    with_data,
)
from bot.publish.render import render_section
from core.dataset import DatasetRow

ROWS = [row(label) for label in LADDER]
MIXED = [
    row("Q8_0", environment=GPU, peak_vram_bytes=5_100_000_000),
    row("Q4_K_M"),
    row("IQ4_XS", reference_key=sha("other"), quality_imported="llama-perplexity"),
    row("Q2_K", without="quality speed", state="failed", reason="INVALID"),
    row("Q3_K_M", without="quality speed", state="waiting", reference_key=None),
]
FIGURES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


def section(rows: list[DatasetRow]) -> str:
    return render_section(rows, endpoint=ENDPOINT, project_url="", leaderboard_url="")


def rounded(block: DataBlock) -> DataBlock:
    """What 7 digits leave of it."""
    told = json.loads(json.dumps(block.model_dump()), parse_float=lambda text: float(f"{float(text):.7g}"))
    return DataBlock.model_validate(told)


def test_comment_as_agreed() -> None:
    compare("data-block.md", encode(MIXED) + "\n")


def test_file_as_agreed() -> None:
    compare("data-block.json", data_file(MIXED).decode())


@pytest.mark.parametrize("rows", [ROWS, MIXED, ROWS[:1]])
def test_there_and_back(rows: list[DatasetRow]) -> None:
    assert decode(f"before\n{encode(rows)}\nafter") == rounded(data_of(rows))
    assert decode_file(data_file(rows)) == data_of(rows)


def test_what_others_go_by() -> None:
    found = decode(encode(MIXED))
    assert found is not None and found.left_out is None
    assert (found.repo, found.protocol, found.protocol_name) == ("owner/Model-GGUF", PROTOCOL.fingerprint, "wiki512")
    assert (found.reference, found.reference_file) == (sha("file", "F16"), "owner/Model-GGUF/Model-F16.gguf")
    by_label = {one.label: one for one in found.variants}
    q4, gpu, other, failed = (by_label[label] for label in ("Q4_K_M", "Q8_0", "IQ4_XS", "Q2_K"))
    assert (q4.file, q4.key, q4.state, q4.size_bytes, q4.bpw) == (
        "Model-Q4_K_M.gguf", sha("file", "Q4_K_M"), "measured", 2_537_312, 4.81,
    )  # fmt: skip
    assert (q4.kld_mean, q4.kld_stderr, q4.kld_p99_9, q4.same_top) == (0.00861, 0.0001, 0.284, 0.950)
    assert (q4.ppl_ratio, q4.ppl_ratio_stderr, q4.pp_ts, q4.pp_ts_stddev, q4.tg_ts, q4.tg_ts_stddev) == (
        1.007, 0.0004, 5540.0, 27.7, 2145.0, 14.3,
    )  # fmt: skip
    assert q4.environment == found.environment and gpu.environment not in (None, found.environment)
    assert other.reference == sha("other") and by_label["Q3_K_M"].reference is None
    assert failed.state == "failed" and failed.kld_mean is None and failed.environment is None


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("card", ["# T\n\ntext", "---\na: b\n---\n", "", "<details>\n```\nnot closed"])
def test_it_stands_in_a_card(card: str, newline: str) -> None:
    card = card.replace("\n", newline)
    body, files = with_data(section(MIXED), MIXED, "comment")
    assert files == {} and body.count("<!-- quantcard:data") == 1
    new = cards.splice(card, body, key="abc123")
    found = cards.find(new)
    assert found is not None and cards.remove(new) == card
    assert decode(new) == decode(new[found.start : found.end]) == rounded(data_of(MIXED))
    assert cards.splice(new, body, key="abc123") == new


def test_where_it_goes() -> None:
    body = section(ROWS)
    assert with_data(body, ROWS, "none") == (body, {})
    same, files = with_data(body, ROWS, "file")
    assert same == body and files == {FILE: data_file(ROWS)}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(max_size=80), min_size=4, max_size=4),
    st.lists(FIGURES, min_size=3, max_size=3),
)
def test_hostile_names_and_figures_stay_inside(texts: list[str], figures: list[float | None]) -> None:
    label, name, reference, state = texts
    rows = [
        row("Q8_0"),
        row(
            "Q4_K_M", label=label, variant=name + ".gguf", kld_mean=figures[0], tg_ts=figures[1], noise_floor=figures[2]
        ),
        row("Q2_K", reference_variant=reference + "--> <script>", quality_imported=f"-->{state}"[:80]),
    ]
    line = encode(rows)
    inner = line.removeprefix("<!--").removesuffix("-->")
    assert not any(mark in inner for mark in ("--", "<", ">", "\n", "\r")) and line.isascii() and inner.endswith(" ")
    assert decode(line) == rounded(data_of(rows))
    body = f"text\n\n{line}\n"
    assert cards.remove(cards.splice("# T\n", body, key="abc")) == "# T\n"


@pytest.mark.parametrize("n", [20, 90, 130, 200, 3000])
@pytest.mark.parametrize("name", ["M", "m" * 300])
def test_never_longer_than_its_limit_and_says_what_is_missing(n: int, name: str) -> None:
    rows = [
        row("Q8_0", variant=f"{name}-{at}.gguf", label=f"L{at}", size_bytes=10_000 - at, n_params=at) for at in range(n)
    ]
    line = encode(rows)
    found = decode(line)
    assert len(line) <= LIMIT and found is not None
    assert [one.label for one in found.variants] == [f"L{at}" for at in range(len(found.variants))], "largest first"
    whole = all(one.n_params is not None for one in found.variants) and len(found.variants) == n
    assert whole == (found.left_out is None)
    assert len(found.variants) == n or f"{n - len(found.variants)} variants" in str(found.left_out)
    assert len(found.variants) == n or len(line) > LIMIT * 0.8, "no more is left out than must be"
    assert len(decode_file(data_file(rows)).variants) == n  # type: ignore[union-attr]


def test_even_a_tiny_limit_ends() -> None:
    assert len(decode(encode(ROWS, limit=10)).variants) == 0 or len(encode(ROWS, limit=10)) > 10  # type: ignore[union-attr]


GOOD = encode(ROWS[:2])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a card without",
        GOOD.replace("v=1", "v=2"),
        GOOD.replace(" -->", ""),
        GOOD.replace('"size_bytes":', '"size_bytes":-'),
        GOOD.replace('"bpw":16.0', '"bpw":NaN'),
        GOOD.replace('"bpw":16.0', '"bpw":1e999'),
        GOOD.replace('"variants":[', '"variants":[7,'),
        GOOD.replace('"repo":', '"other":'),
        f"{GOOD}\n{GOOD}",
        f"text {GOOD}",
        "<!-- quantcard:data v=1 {} -->",
        "<!-- quantcard:data v=1 " + '{"a":' * 5000 + "1" + "}" * 5000 + " -->",
        "<!-- quantcard:data v=1 {" + "x" * (2 * LIMIT) + "} -->",
        '<!-- quantcard:data v=1 {"variants":' + "9" * 5000 + "} -->",
        "<!-- quantcard:data v=1 [1] -->",
    ],
)
def test_what_is_not_ours_is_none(text: str) -> None:
    assert decode(text) is None


def test_newer_names_are_left_alone() -> None:
    text = GOOD.replace('"repo":', '"later":[1],"repo":').replace('"label":', '"also_later":{"a":1},"label":')
    assert decode(text) == decode(GOOD)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.integers(0, len(GOOD)), st.integers(0, 40))
def test_damage_gives_none_or_a_block(put: str, at: int, cut: int) -> None:
    found = decode(GOOD[:at] + put + GOOD[at + cut :])
    assert found is None or isinstance(found, DataBlock)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    assert decode_file(data) is None
