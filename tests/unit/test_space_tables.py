"""What the page writes: figures rounded where they end, and no foreign string that acts."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from core.dataset import MEASUREMENTS_PATH, QueueRow, RequestAck
from core.errors import InputError, QuantcardError
from space import tables, text
from space.data import LocalSource, Results
from space.requests import repo_id_of, user_of
from space.views import State, Views, toggled

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from sample_rows import hostile, row, sample, write

NOW = datetime(2026, 3, 5, tzinfo=UTC)
NASTY = [
    "<script>alert(1)</script>",
    "a | b",
    "`x` **b** [l](javascript:alert(1)) ![i](x)",
    "\"'><img src=x onerror=alert(1)>",
    "${alert(1)} {{constructor}}",
    "\u202egnp.exe\u2066",
    "line\nbreak\r\n|--|",
]


class Tags(HTMLParser):
    """Every tag and attribute of a text of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name == "href"}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def views_of(folder: Path, rows: list, **callables: object) -> Views:
    write(folder / MEASUREMENTS_PATH, rows)
    results = Results(LocalSource(folder))
    results.refresh()
    return Views(results, **callables)  # type: ignore[arg-type]


@pytest.mark.parametrize("nasty", NASTY)
def test_escaped_text_is_only_text(nasty: str) -> None:
    shown = text.esc(nasty)
    assert not set("<>\"'`|{}$*[]\n\r\u202e\u2066") & set(shown)
    parsed = Tags(f'<p title="{shown}">{shown}</p>')
    assert parsed.tags == {"p"} and parsed.attributes == {"title"}
    assert "".join(parsed.words) == text.clean(nasty)


def test_imported_figures_bear_a_mark(tmp_path: Path) -> None:
    views = views_of(
        tmp_path,
        [
            row(label="A", quality_imported="llama-perplexity", speed_imported="llama-bench"),
            row(label="B", speed_imported=NASTY[0]),
            row(label="C"),
        ],
    )
    table = views.table(State())[0]
    assert table.count('class="qc-badge qc-imported"') == 2 and "read from llama-perplexity" in table
    assert table.count(": not ranked") == 1 and not {"script"} & Tags(table).tags
    page = views.measurement(row(label="A").id)
    assert "<th>Imported</th>" in page and "speed was measured elsewhere" in page
    assert "<th>Imported</th>" not in views.measurement(row(label="C").id)


def test_a_hostile_row_adds_no_tag_and_no_link(tmp_path: Path) -> None:
    views = views_of(tmp_path, [hostile()])
    table = views.table(State())[0]
    found = Tags(table)
    assert found.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "button", "a", "span", "ul", "li"}
    assert found.links == {f"?row={hostile().id}"}
    assert not {a for a in found.attributes if a.startswith("on")} and "src" not in found.attributes
    page = views.measurement(hostile().id)
    whole = Tags(page)
    assert not whole.tags & {"script", "img", "svg", "i"} and "src" not in whole.attributes
    assert not {a for a in whole.attributes if a.startswith("on")}
    assert not any("javascript" in link for link in whole.links)
    assert "${" not in page + table and "{{" not in page + table


def test_only_real_repo_ids_become_links() -> None:
    assert 'href="https://huggingface.co/a/b"' in text.repo_link("a/b", text_hub := "https://huggingface.co")
    for odd in ("a", "a/b/c", "../x", "a/b?x=y", "javascript:x/y", "a b/c", "/a/b"):
        assert "href" not in text.repo_link(odd, text_hub)


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (0.00861, 0.0001, "0.00861 ± 0.00020"),
        (0.293, 0.002, "0.293 ± 0.004"),
        (0.00044, 0.00000510, "0.000440 ± 0.000010"),
        (2.1e-6, 1e-6, "2.1e-6 ± 2e-6"),
        (-3e-7, 1e-7, "-3.0e-7 ± 2e-7"),
        (12.5, 3, "12 ± 6"),
        (0.5, None, "0.500"),
        (0.5, 0.0, "0.500"),
        (0.0, None, "0"),
        (None, 0.1, "–"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_intervals_end_where_the_figure_does(value: float | None, stderr: float | None, shown: str) -> None:
    assert text.interval(value, stderr) == shown


def test_figures_read_well() -> None:
    assert [text.size(n) for n in (None, 0, 999, 1000, 806_058_240, 4_372_812_000, 99_960_000_000)] == [
        "–", "0 B", "999 B", "1.00 kB", "806 MB", "4.37 GB", "100 GB",
    ]  # fmt: skip
    assert [text.significant(x) for x in (0.284, 1.07, 0.0074, 12345.6, 3.2e-8, None)] == [
        "0.284", "1.07", "0.00740", "12,346", "3.20e-8", "–",
    ]  # fmt: skip
    assert [text.speed(x) for x in (8.04, 99.96, 5470.2, None)] == ["8.0", "100.0", "5,470", "–"]
    assert text.interval(0.9504, 0.0005, scale=100, decimals=1) == "95.0 ± 0.1"
    assert text.interval(1.0, 1e-9, decimals=4) == "1.0000 ± <0.0001"
    assert text.percent(0.9504) == "95.0 %"
    assert text.ago(NOW - timedelta(minutes=61), NOW) == "1 hour ago"
    assert text.ago(NOW + timedelta(hours=1), NOW) == "just now"


def test_notes_say_what_a_row_is(tmp_path: Path) -> None:
    views = views_of(tmp_path, sample(now=NOW))
    notes = {(e.row.owner, e.row.label, e.row.state): tables.notes(e) for e in views.results.rows(include_stale=True)}
    assert "◆" in notes["bartowski", "Q4_K_M", "measured"]
    assert "unsloth Q4&#95;K&#95;M" in notes["bartowski", "Q4_K_M", "measured"]
    assert "◆" not in notes["mradermacher", "Q4_K_M", "measured"]
    assert "reference" in notes["bartowski", "BF16", "measured"]
    assert "stale" in notes["bartowski", "Q4_0", "stale"]
    failed = notes["bartowski", "IQ1_S", "failed"]
    assert "INVALID" in failed and "3 logits are NaN" in failed and "imatrix-overlap" in failed


@pytest.mark.parametrize("flags", ["", "null", "[]", "{}", "[1, null]", '"x"', "not json", '{"flags": 1}'])
def test_flags_that_are_not_flags_are_none(flags: str) -> None:
    assert tables.flags(row(flags=flags)) == []


def test_several_environments_are_lettered_and_explained(tmp_path: Path) -> None:
    html = views_of(tmp_path, sample(now=NOW)).table(State())[0]
    assert "Speeds and memory of these 2 environments" in html
    assert ">A</span> AMD EPYC 7763" in html and ">B</span> NVIDIA L4" in html
    assert list(tables.marks(str(i) for i in range(28)).values())[25:] == ["Z", "A2", "B2"]


def test_the_pager_counts_and_stays_inside(tmp_path: Path) -> None:
    views = views_of(tmp_path, [row(label=f"L{i:03}") for i in range(120)])
    html, pager, page, pages = views.table(State(page=99))
    assert (page, pages) == (3, 3) and pager == "101–120 of 120 files · page 3 of 3"
    assert html.count("<tr") == 21


def test_empty_states_say_what_to_do(tmp_path: Path) -> None:
    views = views_of(tmp_path, [row(state="stale")])
    assert "tick" in views.table(State())[0]
    assert "Fewer filters" in views.table(State(search="zzz"))[0]
    assert "no such measurement" in views.measurement("nothing")
    nothing = Views(Results(LocalSource(tmp_path / "none")))
    assert "No results yet" in nothing.table(State())[0]
    assert nothing.plot(State(), "kld_mean")[0] is None


def test_a_measurement_shows_everything(tmp_path: Path) -> None:
    one = row()
    page = views_of(tmp_path, [one]).measurement(one.id)
    for expected in ("Q4&#95;K&#95;M", "wikitext-2-raw-v1 test", "AMD EPYC 7763", "--protocol wiki512", "KLD 95 %"):
        assert expected in page
    assert f"&quot;id&quot;: &quot;{one.id}&quot;" in page


def test_a_measurement_without_any_figure_still_shows(tmp_path: Path) -> None:
    bare = {n: None for n, f in type(row()).model_fields.items() if not f.is_required() and f.default is None}
    failed = row(**{**bare, "state": "failed", "reason": "measurement died: SIGSEGV"})
    page = views_of(tmp_path, [failed]).measurement(failed.id)
    assert "failed: measurement died: SIGSEGV" in page


@pytest.mark.parametrize(
    ("given", "repo"),
    [
        ("owner/repo", "owner/repo"),
        ("  owner/Repo-1.5_x.GGUF ", "owner/Repo-1.5_x.GGUF"),
        ("https://huggingface.co/owner/repo", "owner/repo"),
        ("https://huggingface.co/owner/repo/", "owner/repo"),
        ("https://huggingface.co/owner/repo/tree/main?x=1#y", "owner/repo"),
        ("https://huggingface.co/owner/repo/blob/main/x.gguf", "owner/repo"),
        ("huggingface.co/owner/repo", "owner/repo"),
        ("hf.co/owner/repo:Q4_K_M", "owner/repo"),
        ("hf://owner/repo", "owner/repo"),
        ("http://localhost:5000/owner/repo", "owner/repo"),
    ],
)
def test_ids_and_addresses_are_understood(given: str, repo: str) -> None:
    assert repo_id_of(given, hub_url="http://localhost:5000") == repo


@pytest.mark.parametrize(
    "given",
    [
        "", "  ", "repo", "/", "owner/", "/repo", "a/b/c", "https://evil.example/owner/repo", "a b/c", "-a/b",
        "https://huggingface.co/datasets/owner/repo", "spaces/owner/repo", "owner/re--po", "owner/..", "o/" + "x" * 300,
        "owner/repo.git", "<script>/x", "ownér/repo", "javascript://x/y", "https://huggingface.co", "x" * 9999,
        "https://huggingface.co@evil.example/owner/repo", "http://[::1/owner/repo",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_sentence(given: str) -> None:
    with pytest.raises(InputError, match=r"\.$"):
        repo_id_of(given)


def test_names_are_optional_and_checked() -> None:
    assert user_of(None) is user_of("  ") is None
    assert user_of(" @some-one ") == "some-one"
    with pytest.raises(InputError):
        user_of("<b>me</b>")


def test_requests_never_raise(tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def submit(repo: str, user: str | None) -> RequestAck:
        asked.append((repo, user))
        if user == "limited":
            raise QuantcardError("You have asked for enough today.")
        if user == "broken":
            raise RuntimeError("a secret path")
        return RequestAck(accepted=True, message="It will be measured.", position=0)

    views = views_of(tmp_path, [row()], submit=submit)
    assert "It is next" in views.acknowledged(views.request("hf.co/a/b", " me "))
    assert views.request("a/b", "limited").message == "You have asked for enough today."
    assert "secret" not in views.request("a/b", "broken").message
    assert not views.request("nonsense", None).accepted
    assert asked == [("a/b", "me"), ("a/b", "limited"), ("a/b", "broken")]
    assert not Views(views.results).request("a/b", None).accepted


def test_the_queue_is_shown_or_explained(tmp_path: Path) -> None:
    job = QueueRow(
        id=7, kind="quality", repo_id="a/b", variant="<x>|.gguf", state="running", progress=1.7, updated_at=NOW,
        reason="waits | <b>", position=2,
    )  # fmt: skip
    shown = views_of(tmp_path, [row()], queue=lambda: [job]).queue()
    assert 'value="1.000"' in shown and "2 ahead" in shown and "<b>" not in shown and "<x>" not in shown
    assert "empty" in views_of(tmp_path, [row()], queue=list).queue()
    assert "only shows results" in views_of(tmp_path, [row()]).queue()

    def broken() -> list[QueueRow]:
        raise RuntimeError("a secret path")

    assert "can&#x27;t be read" in views_of(tmp_path, [row()], queue=broken).queue()


def test_an_address_is_read_leniently() -> None:
    state = State.from_query({"model": "m", "page": "²", "sort": "x; DROP", "stale": "1", "q": "x" * 999, "row": "r"})
    assert state == State(model="m", page=1, sort="model", stale=True, search="x" * 200, row="r")
    assert State.from_query({"page": "-3"}).page == State.from_query({"page": "9" * 40}).page == 1
    assert State.from_query({"sort": "-size"}).sort == "-size"
    assert (
        toggled("size", "size") == "-size" and toggled("-size", "size") == "size" and toggled("size", "bad") == "size"
    )


def test_the_page_needs_core_alone() -> None:
    """A Space holds ``core`` and ``space`` and what ``space/requirements.txt`` names, nothing else."""
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"bot", "jobs", "localhub", "templates", "gguf", "llama_cpp", "ray", "sqlite_utils"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import space.serve, space.space_app
print("fine")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "fine", done.stderr


def test_the_space_card_names_the_versions_that_are_pinned() -> None:
    folder = Path(__file__).parents[2] / "space"
    pinned = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert f"sdk_version: {pinned['gradio']}\n" in (folder / "README.md").read_text()
    assert set(pinned) == {"gradio", "duckdb", "pyarrow", "plotly", "pydantic", "huggingface_hub"}
    assert json.dumps(pinned).isascii()
