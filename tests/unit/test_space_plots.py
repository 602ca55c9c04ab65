"""The size-against-KLD plot: fronts, the log axis, and strings that plotly would read as markup."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from core.dataset import MEASUREMENTS_PATH
from space.data import Entry, LocalSource, Results
from space.plots import MAX_GROUPS, size_vs_kld

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from sample_rows import hostile, row, sample, write


@pytest.fixture
def entries(tmp_path: Path) -> Any:
    def read(rows: list) -> list[Entry]:
        write(tmp_path / MEASUREMENTS_PATH, rows)
        results = Results(LocalSource(tmp_path))
        results.refresh()
        return results.rows(limit=1000)

    return read


def lines(figure: Any) -> list[Any]:
    return [t for t in figure.data if t.mode == "lines"]


def markers(figure: Any) -> list[Any]:
    return [t for t in figure.data if "markers" in t.mode]


def test_one_front_per_base_model_and_the_reference_is_left_out(entries: Any) -> None:
    plot = size_vs_kld(entries(sample()))
    assert len(lines(plot.figure)) == 2
    assert [t.name for t in markers(plot.figure)] == ["bartowski", "mradermacher", "unsloth", "ggml-org"]
    assert sum(len(t.x) for t in markers(plot.figure)) == 26
    assert "reference is left out" in plot.caption
    assert plot.figure.layout.yaxis.type == "log"
    front = lines(plot.figure)[0]
    assert list(front.x) == sorted(front.x) and list(front.y) == sorted(front.y, reverse=True)


def test_an_imported_point_is_drawn_and_no_front_leads_through_it(entries: Any) -> None:
    rows = [row(label=x, bpw=bpw, kld_mean=kld) for x, bpw, kld in (("A", 4.0, 0.02), ("B", 6.0, 0.01))]
    plot = size_vs_kld(entries([*rows, row(label="C", bpw=3.0, kld_mean=0.001, quality_imported="llama-perplexity")]))
    [front], [points] = lines(plot.figure), markers(plot.figure)
    assert len(points.x) == 3 and list(front.y) == [0.02, 0.01]
    assert sum("imported" in hover for (hover,) in points.customdata) == 1


def test_uploaders_differ_in_colour_and_in_shape(entries: Any) -> None:
    plot = size_vs_kld(entries([row(repo_id=f"o{i}/r", label=f"L{i}") for i in range(12)]))
    looks = {(t.marker.color, t.marker.symbol[0]) for t in markers(plot.figure)}
    assert len(looks) == 12


def test_zero_and_negative_values_are_drawn_at_the_edge_and_said(entries: Any) -> None:
    plot = size_vs_kld(
        entries(
            [
                row(label="A", bpw=8.0, kld_mean=0.0),
                row(label="B", bpw=9.0, kld_mean=-1e-9),
                row(label="C", bpw=4.0, kld_mean=0.02),
            ]
        )
    )
    (trace,) = markers(plot.figure)
    assert all(y > 0 for y in trace.y) and min(trace.y) == 0.01
    assert sorted(trace.marker.symbol) == ["circle", "circle-open", "circle-open"]
    assert any("KLD -1.00e-9 (drawn at the edge)" in data[0] for data in trace.customdata)
    assert "2 files with a KLD of zero or less" in plot.caption


def test_only_zeros_still_make_a_plot(entries: Any) -> None:
    plot = size_vs_kld(entries([row(kld_mean=0.0)]))
    assert plot.figure.to_json()


def test_ties_and_twins_make_one_front_point_each(entries: Any) -> None:
    plot = size_vs_kld(entries([row(label=x, bpw=4.0, kld_mean=0.02) for x in "ABC"] + [row(label="D", bpw=5.0)]))
    assert [len(line.x) for line in lines(plot.figure)] == [3]
    assert plot.figure.to_json()


def test_the_front_follows_the_figure_that_is_drawn(entries: Any) -> None:
    rows = [
        row(label="A", bpw=4.0, kld_mean=0.02, kld_p99_9=9.0),
        row(label="B", bpw=5.0, kld_mean=0.03, kld_p99_9=1.0),
        row(label="C", bpw=6.0, kld_mean=0.01, kld_p99_9=None),
    ]
    mean, rare = size_vs_kld(entries(rows)), size_vs_kld(entries(rows), figure="kld_p99_9")
    assert len(lines(mean.figure)[0].x) == 2 and len(markers(rare.figure)[0].x) == 2
    assert list(lines(rare.figure)[0].y) == [9.0, 1.0]
    assert "99.9 %" in rare.figure.layout.yaxis.title.text


def test_a_noise_floor_in_sight_is_a_line(entries: Any) -> None:
    near = size_vs_kld(entries([row(noise_floor=0.005)]))
    assert len(near.figure.layout.shapes) == 1 and "dashed line is the noise floor" in near.caption
    far = size_vs_kld(entries([row(noise_floor=1e-9)]))
    assert not far.figure.layout.shapes and "below the picture" in far.caption


def test_too_many_groups_are_cut_and_said(entries: Any) -> None:
    plot = size_vs_kld(entries([row(base_model=f"m/{i}", label=f"L{i}") for i in range(MAX_GROUPS + 3)]))
    assert sum(len(t.x) for t in markers(plot.figure)) == MAX_GROUPS and "3 groups more left out" in plot.caption


def test_nothing_to_plot_is_a_sentence(entries: Any) -> None:
    assert size_vs_kld([]).figure is None
    assert size_vs_kld(entries([row(kld_mean=None), row(label="x", is_reference=True)])).figure is None


def test_foreign_strings_are_escaped(entries: Any) -> None:
    one = hostile().model_copy(update={"state": "measured", "owner": "<b>%{x}</b>"})
    figure = size_vs_kld(entries([one])).figure
    shown = [markers(figure)[0].name, *markers(figure)[0].text, markers(figure)[0].customdata[0][0]]
    assert not any("<script" in s or "<img" in s or "%{" in s for s in shown)
