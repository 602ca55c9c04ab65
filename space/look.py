"""How the page looks: theme, style sheet and the two small scripts. System fonts, nothing from elsewhere."""

from __future__ import annotations

from typing import Any

import gradio as gr

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace"]

CSS = """
/* Gradio's own subdued grey is 2.6:1 on white: too faint to read figures by. */
:root, .gradio-container {--qc-dim: #586475;}
.dark, .dark .gradio-container {--qc-dim: #a3afbf;}
.gradio-container {width: 100% !important; max-width: 1440px !important; margin: 0 auto;}
.gradio-container > .main, .gradio-container .wrap, .gradio-container .tabitem {min-width: 0; width: 100%;}
.gradio-container .column, .gradio-container .row {min-width: 0; max-width: 100%;}
.gradio-container .html-container {padding: 0 !important;}
.gradio-container .main {padding: 14px 20px !important;}
.qc-head h1 {font-size: 1.35rem; font-weight: 650; margin: 0; letter-spacing: -0.01em;}
.qc-head p {margin: 2px 0 0; color: var(--qc-dim); font-size: .9rem;}
.qc-status {margin-top: -4px; color: var(--qc-dim); font-size: .8rem; overflow-wrap: anywhere;}
.qc-scroll {overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: 8px;
  max-width: 100%; -webkit-overflow-scrolling: touch;}
.qc-scroll .qc-table {margin: 0; padding: 0; border-collapse: separate; border-spacing: 0; width: 100%;
  font-size: .82rem; line-height: 1.35;
  font-variant-numeric: tabular-nums;}
.qc-table th, .qc-table td {padding: 4px 8px; border-bottom: 1px solid var(--border-color-primary);
  text-align: left; vertical-align: top; white-space: nowrap; background: var(--background-fill-primary);
  color: var(--body-text-color);}
.qc-table tbody tr:last-child td {border-bottom: 0;}
.qc-table th {font-weight: 600; font-size: .78rem; color: var(--qc-dim);
  background: var(--background-fill-secondary);}
.qc-table .n {text-align: right;}
.qc-table th button {all: unset; cursor: pointer; color: inherit;}
.qc-table th button:hover, .qc-table th[aria-sort$="ending"] {color: var(--body-text-color);}
.qc-table th button:focus-visible {outline: 2px solid var(--color-accent); border-radius: 3px;}
.qc-table tbody tr:hover td {background: var(--background-fill-secondary);}
.qc-table td:first-child, .qc-table th:first-child {position: sticky; left: 0; z-index: 1;}
.qc-table td:first-child a {font-weight: 600;}
.qc-table td > a {display: inline-block; max-width: 215px; overflow: hidden; text-overflow: ellipsis;
  vertical-align: bottom;}
.qc-table td.qc-notes {white-space: normal; min-width: 104px; max-width: 180px;}
.qc-table a, .qc-detail a {color: var(--link-text-color); text-decoration: none;}
.qc-table a:hover, .qc-detail a:hover {text-decoration: underline;}
.qc-table tr.qc-stale td, .qc-table tr.qc-waiting td {color: var(--qc-dim);}
.qc-sub {display: block; font-size: .75rem; font-weight: 400; color: var(--qc-dim);
  max-width: 230px; overflow: hidden; text-overflow: ellipsis;}
.qc-phone {display: none;}
.qc-pm {color: var(--qc-dim); font-size: .78rem;}
.qc-badge {display: inline-block; padding: 0 6px; border-radius: 9px; font-size: .72rem; line-height: 1.5;
  white-space: nowrap; border: 1px solid var(--border-color-primary); color: var(--qc-dim); cursor: help;}
.qc-front {border-color: transparent; color: #009E73; padding: 0 2px;}
.qc-tie {border-color: transparent; font-weight: 700; padding: 0 2px;}
.qc-badge.qc-failed {background: #b3261e; border-color: #b3261e; color: #fff;}
.qc-badge.qc-stale, .qc-flag, .qc-apart, .qc-imported {border-color: #b7791f; color: #b7791f;}
.qc-env {display: inline-block; min-width: 1.5em; text-align: center; border-radius: 4px; font-size: .75rem;
  border: 1px solid var(--border-color-primary);}
.qc-legend {font-size: .78rem; color: var(--qc-dim); margin-top: 8px;}
.qc-legend ul {list-style: none; margin: 4px 0 0; padding: 0;}
.qc-message {padding: 10px 14px; border-radius: 8px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); color: var(--body-text-color); overflow-wrap: anywhere;}
.qc-message-ok {border-color: #009E73;}
.qc-message-no {border-color: #c2410c;}
.qc-hint {font-size: .8rem; min-height: 1.3em; color: var(--qc-dim); overflow-wrap: anywhere;}
.qc-pager {text-align: center; font-size: .82rem; color: var(--qc-dim);}
.qc-detail {color: var(--body-text-color); font-size: .88rem; overflow-wrap: anywhere;}
.qc-detail h2 {font-size: 1.2rem; font-weight: 650; margin: 0;}
.qc-detail h2 small {font-weight: 400; font-size: .85rem; color: var(--qc-dim);}
.qc-detail h3 {font-size: .92rem; font-weight: 600; margin: 16px 0 4px;}
.qc-cards {display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 8px; margin: 12px 0;}
.qc-card {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px 12px;
  display: flex; flex-direction: column;}
.qc-card span, .qc-card small {color: var(--qc-dim); font-size: .75rem;}
.qc-card b {font-size: 1.02rem; font-variant-numeric: tabular-nums;}
.qc-columns {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 0 28px;}
.qc-columns table {width: 100%; border-collapse: collapse; font-size: .82rem;}
.qc-columns th {text-align: left; font-weight: 400; color: var(--qc-dim); width: 38%;}
.qc-columns th, .qc-columns td {padding: 3px 6px 3px 0; border-bottom: 1px solid var(--border-color-primary);
  vertical-align: top; font-variant-numeric: tabular-nums; overflow-wrap: anywhere;}
.qc-detail pre {white-space: pre-wrap; overflow-wrap: anywhere; font-size: .78rem; margin: 0; padding: 10px 12px;
  border-radius: 8px; background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
  max-height: 420px; overflow-y: auto;}
.qc-copy {position: relative;}
.qc-copy button {position: absolute; right: 8px; top: 6px; font-size: .75rem; padding: 1px 8px; cursor: pointer;
  border-radius: 6px; border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color);}
.qc-copy pre {padding-right: 70px;}
.qc-detail summary {cursor: pointer; margin: 14px 0 6px;}
.js-plotly-plot .plotly text {fill: var(--qc-dim) !important;}
.js-plotly-plot .plotly .hovertext text {fill: #fff !important;}
.qc-about {max-width: 76ch;}
.qc-about ul {list-style: none; padding: 0;}
.qc-form {max-width: 640px;}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important;}
  .qc-filters {flex-wrap: wrap !important;}
  .qc-phone {display: block; max-width: 27vw;}
  .qc-table .qc-wide {display: none;}
  .qc-table .n .qc-pm {display: block;}
  .qc-table th, .qc-table td {padding: 4px 6px;}
  .gradio-container .main {padding: 10px !important;}
  .qc-filters .form > * {flex: 1 1 45% !important; min-width: 45% !important;}
  .qc-table td:first-child > a {max-width: 27vw;}
  .qc-table td.qc-notes {min-width: 74px; max-width: 22vw;}
  .qc-badge {white-space: normal; font-size: .66rem; padding: 0 3px;}
}
"""

#: One listener for the whole table: rows open, headings sort; a click with a modifier stays the browser's.
TABLE_JS = """
element.addEventListener('click', (event) => {
  const hit = event.target.closest('[data-row], [data-sort]');
  if (!hit || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (hit.dataset.row) trigger('openrow', {row: hit.dataset.row});
  else trigger('sortby', {sort: hit.dataset.sort});
});
"""

COPY_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const text = button.parentElement.querySelector('pre').innerText;
  navigator.clipboard.writeText(text).then(() => { button.textContent = 'Copied'; });
});
"""

#: Keeps the address a link to what is seen. Parameters that are not ours stay (``__theme``).
ADDRESS_JS = """
(model, owner, protocol, search, stale, sort, page, row) => {
  const wanted = {model, owner, protocol, q: search, stale: stale ? '1' : '', sort: sort === 'model' ? '' : sort,
                  page: page > 1 ? String(page) : '', row};
  const url = new URL(window.location.href);
  for (const [name, value] of Object.entries(wanted)) {
    if (value) url.searchParams.set(name, value); else url.searchParams.delete(name);
  }
  window.history.replaceState(null, '', url);
}
"""

#: Gradio selects the first tab while the page is being built, too: that is nobody coming back to the table.
READY_JS = "() => { window.quantcardReady = true; }"
LEAVE_ROW_JS = """
() => {
  const url = new URL(window.location.href);
  if (!window.quantcardReady) return url.searchParams.get('row') || '';
  url.searchParams.delete('row');
  window.history.replaceState(null, '', url);
  return '';
}
"""


def look() -> dict[str, Any]:
    """Theme and style sheet as ``launch()`` and ``gr.mount_gradio_app()`` take them."""
    theme = gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=_SANS,
        font_mono=_MONO,
        spacing_size="sm",
        radius_size="md",
    )
    return {"theme": theme, "css": CSS}
