"""The section as a format: its schema holds, every version is read back, owners' templates, what changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from golden import GOLDEN, compare
from hypothesis import given, settings
from hypothesis import strategies as st
from situations import measured, situations
from test_section_situations import made

from bot.intake.repo_config import RepoConfig
from bot.publish import card as cards
from bot.publish.data_block import FILE, data_of, decode, decode_file, json_schema
from bot.publish.look import Links, made_section
from bot.publish.own_template import LIMIT, own_template
from bot.publish.ranking import in_order
from bot.publish.section_read import ReadSection, read_section
from bot.publish.spread import Spread
from core.dataset import DatasetRow

ROOT = Path(__file__).parents[2]
PAST = GOLDEN / "past" / "v1"
ROWS = [measured(label) for label in ("BF16", "Q6_K", "Q4_K_M", "Q2_K")]


def on_card(rows: list[DatasetRow], card: str = "# T\n", **more: Any) -> str:
    return made(rows, **more).on(card).card


def read(card: str) -> ReadSection:
    found = read_section(card)
    assert found is not None
    return found


# the twin for programs


def test_schema_is_the_published_one() -> None:
    compare("../../docs/section-schema.json", json.dumps(json_schema(), indent=1) + "\n")


@pytest.mark.parametrize("name", situations())
def test_what_is_rendered_fits_the_schema(name: str) -> None:
    schema = jsonschema.Draft202012Validator(json_schema())
    rows = situations()[name]
    line = next(line for line in on_card(rows).splitlines() if line.startswith("<!-- quantcard:data"))
    schema.validate(json.loads(line.split(" ", 3)[3].removesuffix(" -->")))
    schema.validate(json.loads(made(rows, RepoConfig(data="file")).files[FILE]))
    with pytest.raises(jsonschema.ValidationError):
        schema.validate({"repo": "a/b", "variants": [{"label": "x"}]})


# reading it back


@pytest.mark.parametrize("name", situations())
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_is_written_is_read_back(name: str, newline: str) -> None:
    rows = in_order(situations()[name])
    section = made(rows)
    found = read(section.on("# T\n\ntext\n".replace("\n", newline)).card)
    assert (found.version, found.key, found.data) == (cards.SECTION_VERSION, section.key, decode(section.body))
    assert len(found.rows) == len(rows)
    for row, told in zip(rows, found.rows, strict=True):
        assert told.figures["size"].value == pytest.approx(row.size_bytes, rel=0.02)
        if row.kld_mean is not None:
            kld, printed = Spread(row).kld, told.figures["kld"]
            assert kld is not None and printed.value == pytest.approx(kld.value, abs=6e-4)
            assert printed.half == pytest.approx(kld.half, abs=6e-4)
            assert told.figures["same-top"].value == pytest.approx(row.same_top, abs=6e-4)
        assert ("pp" in told.figures) is (row.pp_ts is not None)
    picks = section.data.picks or ()
    assert [one.purpose for one in found.picks] == [one.purpose for one in picks]
    labels = {row.variant: told.label for row, told in zip(rows, found.rows, strict=True) if row.state != "stale"}
    for shown, said in zip(found.picks, picks, strict=True):
        assert shown.files == tuple(labels[path] for path in said.files)[: len(shown.files)]
        assert len(shown.files) == min(3, len(said.files))
    assert "**" not in found.verdict and found.verdict


@pytest.mark.parametrize("path", sorted(PAST.glob("section-*.md")), ids=lambda path: path.stem)
def test_sections_of_version_1_are_read(path: Path) -> None:
    body, data = path.read_text(), (PAST / "data-block.md").read_text()
    text = f"<!-- quantcard:begin v=1 key=3f1c9a7be210 pad=0,0 -->\n{body}\n{data}<!-- quantcard:end -->\n"
    found = read(text)
    assert (found.version, found.key) == (1, "3f1c9a7be210")
    assert found.data is not None and found.data.picks is None and found.data.variants[0].kld_mean is not None
    lines = [line for line in body.splitlines() if line.startswith("| [")]
    assert len(found.rows) + len(found.picks) == len(lines) + body.count("practically the original | [") + body.count(
        "still close | ["
    )
    assert all(row.figures["size"].value > 1e6 for row in found.rows) and found.verdict
    if "eight" in path.stem:
        row = next(row for row in found.rows if row.label == "Q4_K_M")
        assert (row.figures["kld"].value, row.figures["kld"].half) == (0.00861, 0.0002)
        assert (row.figures["tg"].value, row.figures["kld-99.9"].value) == (2145.0, 0.284)
        assert found.picks[0].files == ("IQ4_XS",) and found.picks[1].purpose == "the smallest that is still close"


def test_the_figures_file_of_version_1_is_read() -> None:
    found = decode_file((PAST / "data-block.json").read_bytes())
    assert found is not None and found.picks is None and len(found.variants) == 5


def test_a_newer_version_is_told_as_one() -> None:
    card = on_card(ROWS).replace("begin v=2", "begin v=7")
    found = read(card)
    assert (found.version, found.rows, found.picks) == (7, (), ()) and found.data is not None
    assert read_section("# T\n") is None


def test_an_older_section_with_these_figures_is_left_alone() -> None:
    section = made(ROWS)
    old = section.on("# T\n").card.replace("begin v=2", "begin v=1")
    assert section.says(old, main=old)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=120), st.integers(0, 4000), st.integers(0, 200))
def test_a_damaged_section_is_read_or_refused(put: str, at: int, cut: int) -> None:
    whole = on_card(ROWS)
    try:
        found = read_section(whole[:at] + put + whole[at + cut :])
    except cards.CardError:
        return
    assert found is None or isinstance(found, ReadSection)


# what changed


def test_what_changed_against_the_section_before() -> None:
    before = on_card(ROWS)
    now = [
        ROWS[0], ROWS[1],
        measured("Q4_K_M", kld=0.0301, variant_key="ab" * 32),
        measured("IQ4_XS"),
    ]  # fmt: skip
    text = on_card(now, before)
    changed = text.split("What changed since the section before")[1].split("</details>")[0]
    assert "- New: IQ4_XS." in changed and "- No longer here: Q2_K." in changed
    assert "- Replaced by newer files: Q4_K_M." in changed
    assert "- Q4_K_M: mean KLD 0.02410 ± 0.00041 before, 0.03010 ± 0.00041 now." in changed
    assert "- the smallest that is good enough: Q4_K_M before, IQ4_XS now." in changed
    assert "What changed" not in on_card(now) and "What changed" not in on_card(ROWS, before)
    assert cards.remove(text) == "# T\n"


def test_names_in_the_changes_are_escaped() -> None:
    hostile = measured("IQ4_XS", label="[x](y)|`<b>`", variant="[x](y)|`<b>`.gguf")
    changed = on_card([*ROWS, hostile], on_card(ROWS)).split("What changed")[1]
    assert r"New: \[x\](y)\|\`&lt;b&gt;\`." in changed


# an owner's own template


def own(folder: Path, text: str | bytes, owner: str = "acme") -> Links:
    (folder / owner).mkdir(exist_ok=True)
    path = folder / owner / "section.md.j2"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Links("https://huggingface.co", templates=folder)


def test_an_owners_template_takes_the_sections_place(tmp_path: Path) -> None:
    links = own(tmp_path, "## Mine\n\n{{ verdict }}\n\n{{ files.markdown }}\n\n{% include 'metrics.md.j2' %}\n")
    section = made_section(ROWS, RepoConfig(), links)
    assert section.body.startswith("## Mine") and section.warning is None and "bits per weight" in section.body
    assert decode(section.body) == decode(made(ROWS).body), "the data block is ours"
    assert section.key == made(ROWS).key, "another look is no reason for a pull"
    theirs = made_section([row.model_copy(update={"owner": "else"}) for row in ROWS], RepoConfig(), links)
    assert theirs.body.startswith("## Which file")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ nothing }}", "UndefinedError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ verdict.__class__.__mro__ }}", "SecurityError"),
        ("{{ ''.__class__ }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TemplateNotFound"),
        ("{% include '../pyproject.toml' %}", "TemplateNotFound"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("  \n", "empty"),
        ("{% for i in range(90000) %}aaaaaaaaaa{% endfor %}", "characters"),
        ("```\nnever closed", "must close its code"),
        ("a\n\n<!-- quantcard:end -->\n\nb", "hold no marker"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a" * (LIMIT + 1), "KiB"),
    ],
)
def test_a_broken_template_never_breaks_a_card(
    tmp_path: Path, text: str | bytes, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    section = made_section(ROWS, RepoConfig(), own(tmp_path, text))
    assert section.warning is not None and says in section.warning
    assert section.body.startswith("## Which file should I pick?")
    placed = section.on("# T\n")
    assert placed.note is not None and "template for acme is not used" in placed.note
    assert any("template for acme" in record.getMessage() for record in caplog.records)


def test_names_of_owners_are_no_paths(tmp_path: Path) -> None:
    own(tmp_path, "x")
    inside = tmp_path / "inside"
    inside.mkdir()
    assert own_template(inside, "../acme") is None and own_template(inside, "..") is None
    assert own_template(tmp_path, "acme") is not None and own_template(None, "acme") is None


def test_a_template_can_not_take_the_escaping_off(tmp_path: Path) -> None:
    hostile = "[x](y)|<script>alert(1)</script>\n## @all `"
    rows = [
        ROWS[0],
        measured("Q6_K", label=hostile, variant=f"{hostile}.gguf", disputed=hostile),
        measured("Q4_K_M", without="quality speed", state="failed", reason=hostile,
                 flags=json.dumps([{"code": "c", "detail": hostile}])),
    ]  # fmt: skip
    names = ("verdict", "disputed", "legend", "corpus", "command", "tasks", "raw", "bot", "leaderboard")
    text = "".join(f"{{{{ {name}|safe }}}}\n\n" for name in names)
    text += "{% for p in picks %}{{ p.files|safe }} {{ p.because|safe }}\n{% endfor %}\n{{ files.markdown|safe }}\n"
    text += "{% for r in files.remarks %}{{ r.file|safe }}{{ r.detail|safe }}{% endfor %}\n"
    text += "{% for f in flags %}{{ f.file|safe }}{{ f.detail|safe }}{% endfor %}\n{{ statistics.markdown|safe }}\n"
    text += "{{ tensor_types.markdown|safe }}\n{% for l in provenance + method %}{{ l|safe }}\n{% endfor %}"
    section = made_section(rows, RepoConfig(data="none"), own(tmp_path, text))
    assert section.warning is None
    assert "<script" not in section.body and "@all" not in section.body and "\n## " not in section.body
    assert "[x](y)" not in section.body.replace("\\[x\\](y)", "")


def test_data_of_names_the_picks() -> None:
    found = data_of(situations()["metrics-disagree"])
    assert found.picks is not None
    memory = next(one for one in found.picks if one.kind == "memory")
    assert memory.files == ("Nova-8B-Q4_K_S.gguf", "Nova-8B-Q4_K_M.gguf")
