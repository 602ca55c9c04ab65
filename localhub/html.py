"""Plain HTML for people: no scripts, every string from a repo escaped. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import quote

from .gitobj import Tree

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
nav { color: #888; margin-bottom: 1rem; } a { color: #2a6fd6; } small, .soft { color: #888; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .35rem .5rem; } td.size { text-align: right; }
td.size { font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem;
  overflow-x: auto; font: 13px/1.45 ui-monospace, monospace; }
pre.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.badge { border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .6rem; font-size: .85rem; }
.open { color: #2a8a3e; } .closed { color: #c33; } .merged { color: #8250df; } .draft { color: #888; }
article { border: 1px solid var(--line); border-radius: .4rem; margin: 1rem 0; }
article > header { background: var(--soft); padding: .3rem .8rem; } article > pre { border: 0; margin: 0; }
.add { background: #2a8a3e2b; } .del { background: #cc33332b; }
.hunk { color: #8250df; } .file { font-weight: 700; }
pre.diff span { display: block; min-height: 1.45em; }
"""


def page(title: str, body: str) -> str:
    """A whole page around a body that is HTML already."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><nav><a href=/>localhub</a></nav>{body}</html>"
    )


def link(path: str, text: str) -> str:
    """A link to a path of this hub."""
    return f'<a href="/{escape(quote(path))}">{escape(text)}</a>'


def size(value: int) -> str:
    """A size for people."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def badge(status: str) -> str:
    """A status."""
    return f'<span class="badge {escape(status)}">{escape(status)}</span>'


def files(web_path: str, tree: Tree) -> str:
    """The files of a tree, linked to their bytes."""
    rows = (
        f"<tr><td>{link(f'{web_path}/resolve/main/{path}', path)}<td class=size>{size(entry.size)}"
        f"<td><small>{'LFS' if entry.lfs else ''}</small>"
        for path, entry in sorted(tree.items())
    )
    return f"<table>{''.join(rows)}</table>"


def discussion_list(web_path: str, items: Iterable[dict[str, Any]]) -> str:
    """Discussions and pull requests, linked."""
    rows = [
        f"<tr><td>#{item['num']}<td>{link(web_path + '/discussions/' + str(item['num']), item['title'])}"
        f"<td>{'pull request' if item['isPullRequest'] else 'discussion'}<td>{badge(item['status'])}"
        f"<td>{escape(item['author'])}<td><small>{escape(item['createdAt'][:10])}</small>"
        for item in items
    ]
    return f"<table>{''.join(rows)}</table>" if rows else "<p class=soft>None yet.</p>"


def _diff_class(line: str) -> str:
    if line.startswith(("diff --git", "+++", "---")):
        return "file"
    return {"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "")


def diff(text: str) -> str:
    """A diff with its lines coloured."""
    if not text:
        return "<p class=soft>No changes.</p>"
    shown = text.removesuffix("\n").split("\n")
    lines = (f'<span class="{_diff_class(line)}">{escape(line)}</span>' for line in shown)
    return f"<pre class=diff>{''.join(lines)}</pre>"


def event(item: dict[str, Any]) -> str:
    """One event of a discussion."""
    who, when, data = escape(item["author"]), escape(item["createdAt"][:16].replace("T", " ")), item["data"]
    if item["type"] == "comment":
        return (
            f'<article id="{escape(item["id"])}"><header><b>{who}</b> <small>{when}</small></header>'
            f"<pre class=text>{escape(data['latest']['raw'])}</pre></article>"
        )
    if item["type"] == "status-change":
        told = f"changed the status to {badge(data['status'])}"
    elif item["type"] == "title-change":
        told = f"renamed it from <i>{escape(data['from'])}</i> to <i>{escape(data['to'])}</i>"
    else:
        told = f"pushed <code>{escape(data['oid'][:8])}</code> {escape(data['subject'])}"
    return f"<p><b>{who}</b> {told} <small>{when}</small></p>"
