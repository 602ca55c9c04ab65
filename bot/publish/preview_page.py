"""A page that shows a pull before it is opened: the card as the Hub would render it, the diff, the first comment. Pure.

The Markdown is GitHub's (tables, strikethrough, bare addresses, HTML), sanitised as the Hub does: no scripts, styles,
frames or handlers, ids in a name space of their own. The page loads nothing: our plots are in it, other pictures are
named by their alternative text.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import quote, urlsplit

import nh3
from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markdown_it import MarkdownIt
from markupsafe import Markup

from bot.hub.diff import unified

#: Where the section begins in the page.
ANCHOR = "user-content-quantcard-section"
#: Characters of a diff's line that are shown: the hidden JSON is one line.
_MAX_LINE = 600
_MAX_LINES = 5_000

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)(?:^|\r?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_BEGIN = re.compile(r"^<!-- quantcard:begin[^\n]*-->", re.MULTILINE)
_TAGS = frozenset(
    re.findall(
        r"\w+",
        """a abbr b bdo blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption figure
        h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p picture pre q rp rt ruby s samp small source span strike strong
        sub summary sup table tbody td tfoot th thead time tr tt ul var""",
    )
)
_ATTRIBUTES = {
    "*": {"align", "id", "title", "dir", "lang"},
    "a": {"href"},
    "code": {"class"},
    "col": {"span", "width"},
    "details": {"open"},
    "div": {"class"},
    "img": {"src", "alt", "width", "height"},
    "ol": {"start", "type"},
    "td": {"colspan", "rowspan", "valign", "width", "style"},
    "th": {"colspan", "rowspan", "valign", "width", "scope", "style"},
}
_SCHEMES = {"http", "https", "mailto"}
_CLASS = re.compile(r"language-[\w+#-]{1,40}")


@dataclass(frozen=True, slots=True)
class Page:
    """What a preview shows.

    Args:
        repo_id: whose card it is; ``endpoint``: of the Hub that its links lead to.
        before, after: the card as it is and as it would be.
        title, body: of the pull.
        files: what else the pull brings, by path.
        decision: a sentence on whether it would be opened now.
    """

    repo_id: str
    endpoint: str
    before: str
    after: str
    title: str
    body: str
    files: Mapping[str, bytes]
    decision: str


def render_page(page: Page) -> str:
    """The page, whole in itself."""
    front = _FRONT.match(page.after)
    card = page.after[front.end() :] if front else page.after
    return _ENVIRONMENT.get_template("preview.html.j2").render(
        page=page,
        repo_url=f"{page.endpoint}/{quote(page.repo_id)}",
        front=_visible(front[1]) if front else None,
        card=Markup(render_markdown(_marked(card), repo_id=page.repo_id, endpoint=page.endpoint, files=page.files)),
        body=Markup(render_markdown(page.body, repo_id=page.repo_id, endpoint=page.endpoint)),
        lines=diff_lines(page.before, page.after),
        anchor=ANCHOR,
    )


def render_markdown(text: str, *, repo_id: str, endpoint: str, files: Mapping[str, bytes] | None = None) -> str:
    """A stranger's Markdown as safe HTML.

    Args:
        repo_id, endpoint: what relative links are relative to.
        files: pictures (PNG) by their path in the repo; all others are left out.
    """
    parser = MarkdownIt("commonmark", {"html": True, "linkify": True}).enable(["table", "strikethrough", "linkify"])
    known = files or {}

    def attribute(tag: str, name: str, value: str) -> str | None:
        if name == "src":
            data = known.get(value.removeprefix("./"))
            return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data is not None else None
        if name == "class":
            return value if _CLASS.fullmatch(value) else None
        if name == "style":
            # How Markdown says a column's alignment.
            return value if re.fullmatch(r"text-align:(left|right|center)", value) else None
        if name == "href" and not value.startswith("#") and not urlsplit(value).scheme:
            return f"{endpoint}/{quote(repo_id)}/blob/main/{value.removeprefix('./').lstrip('/')}"
        return value

    return nh3.clean(
        parser.render(_visible(text)),
        tags=set(_TAGS),
        clean_content_tags={"script", "style", "iframe", "noscript", "template"},
        attributes={tag: set(names) for tag, names in _ATTRIBUTES.items()},
        attribute_filter=attribute,
        url_schemes=set(_SCHEMES),
        id_prefix="user-content-",
        link_rel="nofollow noopener noreferrer",
    )


def diff_lines(before: str, after: str) -> list[tuple[str, str]]:
    """(kind, text) of each line of the change: ``add``, ``del``, ``hunk`` or empty; very long ones are cut."""
    found = []
    for number, line in enumerate(unified(before, after, path="README.md")):
        if number >= _MAX_LINES:
            found.append(("hunk", "… the rest is not shown here"))
            break
        text = _visible(line).rstrip("\r\n")
        if len(text) > _MAX_LINE:
            text = f"{text[:_MAX_LINE]}… ({len(text) - _MAX_LINE:,} more characters)"
        head = line.startswith(("---", "+++")) and number < 2
        kind = "hunk" if head or line.startswith("@@") else {"+": "add", "-": "del"}.get(line[:1], "")
        found.append((kind, text))
    return found


def _marked(card: str) -> str:
    """A card with an anchor right behind the line where our section begins."""
    return _BEGIN.sub(lambda found: f'{found[0]}\n\n<a id="quantcard-section"></a>\n', card)


def _visible(text: str) -> str:
    """A text that can be encoded: what is not UTF-8 is shown as such."""
    return text.encode("utf-8", "replace").decode()


def _load(name: str) -> str:
    return files("templates").joinpath(name).read_text(encoding="utf-8")


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    loader=FunctionLoader(_load), undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
)
