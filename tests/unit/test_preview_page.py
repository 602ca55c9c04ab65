"""The preview's page: strangers' Markdown as the Hub's, inert; the diff; nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.publish.preview_page import ANCHOR, Page, diff_lines, render_markdown, render_page

HUB = "https://hub.example"
PNG = b"\x89PNG\r\n\x1a\n picture"
BAD_TAGS = {"script", "style", "iframe", "object", "embed", "form", "input", "link", "meta", "base", "svg", "math"}


def html(text: str, **files: bytes) -> str:
    return render_markdown(text, repo_id="o/r", endpoint=HUB, files={"a.png": PNG, **files})


class Tags(HTMLParser):
    """All tags with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check_inert(page: str) -> None:
    for tag, attributes in Tags(page).found:
        assert tag not in BAD_TAGS, page
        for name, value in attributes.items():
            assert not name.startswith("on"), page
            assert name not in ("srcdoc", "formaction", "srcset", "ping", "background"), page
            if name == "href":
                assert re.match(r"(?i)https?:|mailto:|#", value or "#"), page
            if name == "src":
                assert (value or "").startswith("data:image/png;base64,"), page
            if name == "id":
                assert (value or "").startswith("user-content-"), page
            if name == "style":
                assert re.fullmatch(r"text-align:(left|right|center)", value or ""), page


def test_markdown_is_githubs() -> None:
    made = html("# A\n\n|a|b|\n|:-|-:|\n|1|~~2~~|\n\nsee https://x.example/y and <kbd>K</kbd>\n\n```python\n1\n```")
    assert "<h1>A</h1>" in made and "<table>" in made and "<s>2</s>" in made and "<kbd>K</kbd>" in made
    assert '<th style="text-align:left">' in made and '<td style="text-align:right">' in made
    assert '<a href="https://x.example/y" rel="nofollow noopener noreferrer">' in made
    assert '<code class="language-python">' in made
    folded = html("<details><summary>S</summary>\n\n- a\n\n</details>")
    assert re.sub(r"\s", "", folded) == "<details><summary>S</summary><ul><li>a</li></ul></details>"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "<a href='java\nscript:alert(1)'>x</a>",
        "<a href='data:text/html,<script>1</script>'>x</a>",
        "<iframe src='https://x.example'></iframe>",
        "<svg><script>1</script></svg>",
        "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
        "<div style='position:fixed;inset:0'>x</div>",
        "<td style='background:url(https://x.example)'>",
        "<form action='https://x.example'><input name=a></form>",
        "<base href='https://x.example'>",
        "<link rel=stylesheet href='https://x.example'>",
        "<img src='https://x.example/p.png'>",
        "<img src='//x.example/p.png'>",
        "<img src='data:image/svg+xml,<svg onload=alert(1)>'>",
        "<picture><source srcset='https://x.example/p.png'><img alt=a></picture>",
        "<p id='diff'>",
    ],
)
def test_what_could_do_harm_is_gone(text: str) -> None:
    check_inert(html(text))
    check_inert(html(f"words {text} words"))


_PIECES = (
    "<script>", "</script>", "<style>", "<img src=", "onerror=", "javascript:", "<a href=", "'", '"', ">", "</", "<!--",
    "-->", "[a](", ")", "``", "```", "|", "<details>", "<svg>", "<math>", "<noscript>", "<title>", "<textarea>",
    "<template>", "![x](", "\n", "\n\n", "&lt;", "&#x6a;", "\x00", "\ud800",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(_PIECES),
            st.text(max_size=6),
        ),
        max_size=14,
    )
)
def test_whatever_is_written_is_inert(parts: list[str]) -> None:
    check_inert(html("".join(parts)))


def test_our_plots_are_in_the_page_and_other_pictures_are_named() -> None:
    made = html(
        "![ours](a.png)\n\n![ours too](./a.png)\n\n![theirs](b.png)\n\n<img alt='far' src='https://x.example/p'>"
    )
    data = base64.b64encode(PNG).decode()
    assert made.count(f'src="data:image/png;base64,{data}"') == 2
    assert '<img alt="theirs">' in made and '<img alt="far">' in made


def test_links_lead_to_the_hub() -> None:
    made = html("[a](file.md) [b](./x/y.gguf) [c](/z) [d](#e) [f](//x.example)")
    for address in ("file.md", "x/y.gguf", "z"):
        assert f'href="{HUB}/o/r/blob/main/{address}"' in made
    assert 'href="#e"' in made


def page(**changed: object) -> str:
    given = {
        "repo_id": "o/r",
        "endpoint": HUB,
        "before": "---\nlicense: mit\n---\n# Card\n",
        "after": "---\nlicense: mit\n---\n# Card\n\n<!-- quantcard:begin v=1 -->\n## Which?\n\n"
        "![p](quantcard/size-kld.png)\n<!-- quantcard:end -->\n",
        "title": "[bot] <b>title</b>",
        "body": "**Adds** a section",
        "files": {"quantcard/size-kld.png": PNG},
        "decision": "A preview.",
    }
    return render_page(Page(**{**given, **changed}))  # type: ignore[arg-type]


def test_the_page_shows_card_diff_and_comment() -> None:
    made = page()
    assert "license: mit" in made and "<hr>" not in made, "front matter is no part of the text"
    assert made.index("<h1>Card</h1>") < made.index(f'id="{ANCHOR}"') < made.index("<h2>Which?</h2>")
    assert '<div class="add">+## Which?</div>' in made and "<strong>Adds</strong>" in made
    assert "[bot] &lt;b&gt;title&lt;/b&gt;" in made and f"quantcard/size-kld.png: {len(PNG)} bytes" in made
    assert made.count("data:image/png;base64,") == 1
    assert not re.search(r"""(?:src|srcset|data)=["']https?:|url\(|@import""", made), "nothing is loaded"
    assert "<script" not in made
    same = page(after="# Card\n", before="# Card\n", files={})
    assert "Nothing: the card says so already." in same and 'user-content-quantcard-section"></a>' not in same


def test_a_card_that_is_hostile_stays_in_its_place() -> None:
    evil = "</div></main><script>alert(1)</script>\n\n</details></section>\n\n<h1 id=card>x</h1>"
    made = page(
        before=evil, after=evil + "\nmore\n", title="</h1><script>1</script>", body=evil, decision="<img src=x>"
    )
    assert "<script>" not in made and made.count("<main>") == made.count("</main>") == 1
    assert made.count('id="card"') == 1 and "<img src=x>" not in made


def test_the_diff_is_bounded_and_cuts_long_lines() -> None:
    lines = diff_lines("a\r\nb\n", "a\r\n" + "x" * 5000 + "\n")
    assert [kind for kind, _ in lines] == ["hunk", "hunk", "hunk", "", "del", "add"]
    assert lines[-1][1].endswith("… (4,401 more characters)") and len(lines[-1][1]) < 700
    assert len(diff_lines("", "line\n" * 20_000)) == 5_001
    assert diff_lines("a\n--- b\n", "a\n")[-1] == ("del", "---- b")
    assert diff_lines("same", "same") == []
    assert diff_lines("", "\udcff\n")[-1] == ("add", "+?"), "what is no text is shown as such"
