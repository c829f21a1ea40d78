"""A report as one HTML file that needs nothing beside itself: no script, no outside asset.
Texts are escaped here; what is given as HTML (plots, other parts) is put in as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root{color-scheme:light dark;--line:#8886;--soft:#8882}
body{font:16px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;max-width:100%}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(27rem,1fr));gap:1rem}
svg{width:100%;height:auto} svg text{font:11px system-ui,sans-serif;fill:currentColor}
svg .title{font-weight:600;font-size:13px} .grid{stroke:var(--line);fill:none}
.line{fill:none;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
pre,.text{white-space:pre-wrap;overflow-wrap:anywhere} pre{background:var(--soft);padding:1rem}
@media print{body{margin:0;max-width:none}svg,tr{break-inside:avoid}
.plots{grid-template-columns:1fr 1fr}}
"""


def page(title: str, body: str) -> str:
    """The whole document; ``body`` is HTML."""
    name = escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main><h1>{name}</h1>{body}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A heading over HTML; nothing if there is no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], is_numeric: bool = False) -> str:
    """A table of texts; the first cell of a row names it."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for row in rows:
        cells = "".join(
            f'<td class="{"n" if is_numeric else "text"}">{escape(cell)}</td>' for cell in row[1:]
        )
        lines.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    header = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f"<table>{header}<tbody>{''.join(lines)}</tbody></table>"
