"""What plots show, and their bytes: names that overlap nothing, the same file for the same figures, small, marked."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rows import GPU, LADDER, row, sha

from bot.intake.repo_config import RepoConfig
from bot.publish import drawing
from bot.publish.drawing import draw, linear_ticks, log_ticks
from bot.publish.plot_files import PLOT_FILES, PLOT_LIMIT, SIZE_PLOT, SPEED_PLOT, is_our_plot
from bot.publish.plot_labels import Box, crosses, place
from bot.publish.plots import MAX_ALT, Picture, Point, pictures, plot_wish
from bot.publish.section import section_key
from core.dataset import DatasetRow

NINE = [row(label) for label in LADDER]
EVIL = "$\\frac{1}{0}$ <b>|`\u202eQ4\u0000\n文字🙂"


def by_path(rows: list[DatasetRow], *, others: list[DatasetRow] | None = None, **config: object) -> dict[str, Picture]:
    found = pictures(rows, RepoConfig(**config), others=others or [])  # type: ignore[arg-type]
    return {picture.path: picture for picture in found}


def forty() -> list[DatasetRow]:
    rng, found = random.Random(5), [row("F16", size_bytes=70 * 10**9)]
    for at in range(40):
        bpw = 8.6 - at * 0.16 + rng.uniform(-0.1, 0.1)
        kld = 0.0002 * math.exp((8.6 - bpw) * 1.1) * math.exp(rng.uniform(-0.3, 0.3))
        found.append(
            row(
                label=f"UD-IQ{at % 6 + 1}_K_{at:02d}",
                variant=f"M-{at}.gguf",
                variant_key=sha(at),
                size_bytes=int(35e9 * bpw / 8),
                kld_mean=kld,
                kld_p99_9=kld * 25,
                tg_ts=40 + 100 / bpw,
            )
        )
    return found


def test_points_are_the_quantized_files_that_may_be_compared() -> None:
    imported = row("Q6_K", label="X", variant="x.gguf", quality_imported="llama-perplexity")
    found = by_path([*NINE, imported])[SIZE_PLOT]
    assert [p.name for p in found.points] == [label for label in reversed(LADDER) if label != "F16"]
    assert [p.x for p in found.points] == sorted(p.x for p in found.points)
    assert all(p.front for p in found.points) and found.others == ()
    beaten = row("Q5_K_M", label="Q5_0", variant="q5.gguf", kld_p99_9=0.9)
    front = {p.name: p.front for p in by_path([*NINE, beaten])[SIZE_PLOT].points}
    assert front == {**dict.fromkeys((label for label in LADDER if label != "F16"), True), "Q5_0": False}


def test_fewer_than_three_files_need_no_plot() -> None:
    assert by_path(NINE[:3]) == {} and set(by_path(NINE[:4])) == set(PLOT_FILES)
    assert set(by_path([row(label, without="speed") for label in LADDER])) == {SIZE_PLOT}
    assert by_path([row(label, without="quality") for label in LADDER]) == {}
    assert by_path(NINE, plots=False) == {}


def test_speeds_of_two_machines_are_not_in_one_plot() -> None:
    on_gpu = [row(label, environment=GPU, kld_mean=0.01 + at / 100) for at, label in enumerate(("Q5_K_M", "Q6_K"))]
    cpu = [one for one in NINE if one.label not in ("Q5_K_M", "Q6_K")]
    assert {p.name for p in by_path([*cpu, *on_gpu])[SPEED_PLOT].points} == {one.label for one in cpu} - {"F16"}
    imported = [one.model_copy(update={"speed_imported": "llama-bench"}) for one in NINE]
    assert SPEED_PLOT not in by_path(imported)


def test_intervals_are_those_by_chunks() -> None:
    told = json.dumps({"intervals": {"kld_p99_9": {"low": 0.2, "high": 0.4}}})
    rows = [one.model_copy(update={"quality_json": told}) if one.label == "Q4_K_M" else one for one in NINE]
    found = {p.name: p.y_interval for p in by_path(rows)[SIZE_PLOT].points}
    assert found.pop("Q4_K_M") == (0.2, 0.4) and set(found.values()) == {None}
    speed = {p.name: p for p in by_path(NINE)[SPEED_PLOT].points}["Q4_K_M"]
    assert speed.x_half == pytest.approx(2145 / 150) and speed.y_interval is not None
    assert speed.y_interval[1] - speed.y == pytest.approx(1.96 * 0.0001, rel=1e-3)


def test_others_are_shown_only_where_the_owner_wants_it_and_they_can_be_compared() -> None:
    theirs = {"repo_id": "else/M", "owner": "else"}
    good = row("Q4_K_M", **theirs, variant_key=sha("a"))
    others = [
        good,
        row("Q6_K", **theirs),  # the very file that this repo has
        row("Q5_K_M", **theirs, variant_key=sha("b"), reference_key=sha("another")),
        row("Q5_K_M", **theirs, variant_key=sha("c"), protocol_fingerprint="0" * 16),
        row("Q5_K_M", **theirs, variant_key=sha("d"), disputed="Not so."),
        row("Q5_K_M", **theirs, variant_key=sha("e"), quality_imported="llama-perplexity"),
        row("Q5_K_M", **theirs, variant_key=sha("f"), state="stale"),
        row("Q5_K_M", repo_id="owner/Other", variant_key=sha("g")),  # their own other repo
        row("F16", **theirs, variant_key=sha("h")),
    ]
    assert by_path(NINE, others=others)[SIZE_PLOT].others == ()
    shown = by_path(NINE, others=others, plots="others")
    assert [(owner, [p.name for p in points]) for owner, points in shown[SIZE_PLOT].others] == [("else", ["Q4_K_M"])]
    assert shown[SPEED_PLOT].others == ()
    assert "1 of other uploaders in grey" in shown[SIZE_PLOT].alt
    assert by_path(NINE, others=others[::-1], plots="others") == shown


def test_the_key_has_the_wish_only_where_it_changes_something() -> None:
    assert {plot_wish(NINE, RepoConfig(plots=wish)) for wish in (True, False, "others")} == {"", "none", "others"}
    assert {plot_wish(NINE[:3], RepoConfig(plots=wish)) for wish in (True, False, "others")} == {""}
    assert len({section_key(NINE, RepoConfig(plots=wish)) for wish in (True, False, "others")}) == 3


def test_the_sentence_says_what_the_plot_shows() -> None:
    rows = [row(label, without="speed") for label in ("F16", "Q8_0", "Q4_K_M", "Q2_K")]
    assert by_path(rows)[SIZE_PLOT].alt == (
        "99.9 % KLD against file size of 3 files: from Q8_0 (4.5 MB, 0.00740) to Q2_K (1.6 MB, 4.53); "
        "no file here is both smaller and closer than Q8_0, Q4_K_M, Q2_K."
    )
    assert all(len(picture.alt) <= MAX_ALT for picture in pictures(forty(), RepoConfig()))


@pytest.mark.parametrize("rows", [NINE, forty(), NINE[:4]], ids=["nine", "forty", "three"])
def test_a_plot_is_small_and_ours(rows: list[DatasetRow]) -> None:
    for picture in pictures(rows, RepoConfig()):
        data = draw(picture)
        assert is_our_plot(data) and len(data) < PLOT_LIMIT
        with Image.open(io.BytesIO(data)) as image:
            assert image.width == 1280 and image.format == "PNG"
            assert image.text == {"quantcard": "plot v=1"}, "neither a time nor a version"


def test_hostile_names_are_drawn_as_text() -> None:
    rows = [
        row(label, label=f"{EVIL}{label}" * 3, variant=f"{label}.gguf", repo_id="a/b", owner=EVIL)
        for label in list(LADDER)[:5]
    ]
    others = [row("Q4_K_M", label=EVIL, owner=EVIL * 9, repo_id="x/y", variant_key=sha("evil"))]
    for picture in pictures(rows, RepoConfig(plots="others"), others=others):
        assert is_our_plot(draw(picture))
        assert len({p.name for p in picture.points}) == 4 and all(len(p.name) < 60 for p in picture.points)


def test_two_processes_draw_the_same_bytes_and_leave_nothing_in_the_home(tmp_path: Path) -> None:
    script = (
        "import hashlib, sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_plots import NINE, forty\n"
        "from bot.publish.drawing import draw\n"
        "from bot.publish.plots import pictures, RepoConfig\n"
        "for rows in (NINE, forty()):\n"
        "    for picture in pictures(rows, RepoConfig()): print(hashlib.sha256(draw(picture)).hexdigest())\n"
    )
    said = []
    here = Path(__file__)
    for name in ("one", "two"):
        home = tmp_path / name
        home.mkdir()
        # Settings of the person's own, which must not be heeded.
        (home / "matplotlibrc").write_text("font.size: 33\nlines.linewidth: 9\naxes.facecolor: red\n")
        environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": str(len(said) + 1)}
        done = subprocess.run(
            [sys.executable, "-c", script, str(here.parent), str(here.parents[2])],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        said.append(done.stdout)
        assert [path.name for path in home.rglob("*")] == ["matplotlibrc"]
    assert said[0] == said[1] and len(said[0].split()) == 4
    here_too = [draw(picture) for rows in (NINE, forty()) for picture in pictures(rows, RepoConfig())]
    assert [hashlib.sha256(data).hexdigest() for data in here_too] == said[0].split()


def test_only_a_png_with_the_mark_is_ours() -> None:
    data = draw(by_path(NINE)[SIZE_PLOT])
    mark = b"tEXtquantcard\0plot v=1"
    at = data.index(mark)
    assert not is_our_plot(data[: at - 4] + data[at + len(mark) + 4 :]), "without the chunk"
    assert not is_our_plot(b"") and not is_our_plot(b"GIF89a" + data) and not is_our_plot(data[:20])
    saved = io.BytesIO()
    Image.open(io.BytesIO(data)).save(saved, "PNG")
    assert not is_our_plot(saved.getvalue()), "somebody made another file of it"
    looped = data[:8] + struct.pack(">I4s", 0xFFFFFFFF, b"tEXt") + b"x"
    assert not is_our_plot(looped)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_the_bytes_it_is_answered(data: bytes) -> None:
    assert is_our_plot(data) is False
    assert is_our_plot(b"\x89PNG\r\n\x1a\n" + data) in (False, True)


AREA = Box(0, 0, 1280, 1000)
_spots = st.lists(st.tuples(st.floats(150, 1130), st.floats(50, 950)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(_spots, st.randoms(use_true_random=False))
def test_no_name_stands_on_another(points: list[tuple[float, float]], rng: random.Random) -> None:
    sizes = [(rng.uniform(40, 140), 26.0) for _ in points]
    boxes = place(points, sizes, area=AREA)
    assert boxes == place(points, sizes, area=AREA)
    found = [box for box in boxes if box]
    assert len(found) == len(points), "there is room for forty"
    assert all(box.within(AREA) for box in found)
    assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


def test_names_of_forty_files_are_all_drawn() -> None:
    drawn: list[str] = []

    class Watched(drawing._Drawing):
        def _names(self, lines: list[tuple[float, float, float, float]]) -> None:
            super()._names(lines)
            drawn.extend(text.get_text() for text in self._figure.texts)

    for picture in pictures(forty(), RepoConfig()):
        drawn.clear()
        Watched(picture).pixels()
        assert {p.name for p in picture.points} <= set(drawn)


def test_lines_and_boxes() -> None:
    box = Box(10, 10, 20, 20)
    assert crosses((0, 15, 30, 15), box) and crosses((12, 12, 13, 13), box) and crosses((0, 0, 30, 30), box)
    assert not crosses((0, 0, 30, 0), box) and not crosses((0, 15, 9, 15), box) and not crosses((15, 21, 15, 40), box)


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-7, 50), st.floats(1.05, 1e6))
def test_log_axes_have_ticks_that_differ(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 16 and ticks == sorted(set(ticks))
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e12), st.floats(1e-2, 1e12))
def test_size_ticks_have_different_names(low: float, spread: float) -> None:
    ticks = linear_ticks(low, low + max(spread, low / 10, 50))
    names = drawing._sizes(ticks)
    assert len(set(names)) == len(ticks) >= 2


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e3, 1e12), st.floats(1e-9, 40)), min_size=3, max_size=8),
    st.booleans(),
)
def test_whatever_the_figures_there_is_a_picture(values: list[tuple[float, float]], faster: bool) -> None:
    points = tuple(Point(f"Q{i}", x, y, x / 9, (y / 2, y * 2)) for i, (x, y) in enumerate(values))
    made = Picture(SIZE_PLOT, "T", "x", "y", points, larger_is_better=faster, original=values[0][0])
    assert len(draw(made)) < PLOT_LIMIT
