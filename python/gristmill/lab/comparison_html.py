"""A comparison as one HTML file that refers to nothing outside itself, and is light or dark as the system."""

from __future__ import annotations

import time
from html import escape

from gristmill._version import __version__
from gristmill.lab.chart import panels
from gristmill.lab.comparison import CompareResult
from gristmill.lab.comparison_report import cells, notes
from gristmill.lab.svg import panel_svg
from gristmill.machine import describe_machine
from gristmill.messages import printable

# Blue and the greys keep their contrast for every kind of color vision; the front is also filled and joined.
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #667078; --grid: #dfe3e8; --front: #0072b2;
  --surface: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --muted: #98a1aa; --grid: #333a42;
  --front: #56b4e9; --surface: #14171b; } }
body { margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: var(--ink); background: var(--surface);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; }
p, figcaption { color: var(--muted); margin: .2rem 0; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 1.5rem 0; }
.charts svg { flex: 1 1 26rem; min-width: 0; max-width: 38rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; border-bottom: 2px solid var(--muted); }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
"""


def as_html(result: CompareResult) -> str:
    """The whole page."""
    headings, rows = cells(result)
    title = f"{printable(result.base.name)} and {len(result.rows) - 1} others"
    machine = describe_machine()
    lines = [
        *notes(result),
        f"measured {time.strftime('%Y-%m-%d')} with gristmill {__version__} on {machine.cpu}, "
        f"{machine.system}, Python {machine.python}",
    ]
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    charts = "\n".join(panel_svg(panel) for panel in panels(result))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(printable(result.base.path))}</p>
<div class="charts">
{charts}
</div>
<div class="table"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
{"".join(f"<p>{escape(line)}</p>" for line in lines)}
</body>
</html>
"""
