"""One self-contained HTML page of pictures, tables and text."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave._files import atomic_path
from histoweave._version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Content = str | Figure | pd.DataFrame | Sequence[str | Figure | pd.DataFrame]

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1f2328;
  background: #fff; max-width: 1100px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid #d8dee4; }
p { max-width: 75ch; white-space: pre-line; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 1.2rem 0;
  padding: 1rem 1.2rem; background: #f6f8fa; border-radius: 6px; }
dt { color: #57606a; } dd { margin: 0; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #e4e8ec; text-align: left; }
thead th { border-bottom: 2px solid #afb8c1; } tbody th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
footer { margin-top: 3rem; color: #57606a; font-size: .85rem; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } h2 { break-after: avoid; }
  img, tr { break-inside: avoid; } .wide { overflow: visible; } }
"""


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    sections: Sequence[tuple[str, Content]],
    intro: str = "",
    summary: Mapping[str, Any] | None = None,
    dpi: int = 150,
) -> Path:
    """Write a report as one HTML file that needs nothing else: no network, no scripts, no further files.

    Parameters
    ----------
    path
        File to write; it is replaced only when the report is complete.
    title
        Title of the page.
    sections
        ``(heading, content)`` from top to bottom. Content is text (blank lines part paragraphs), a matplotlib
        Figure, a DataFrame, or a list of these. Text is taken literally, never as HTML.
    intro
        Text under the title.
    summary
        ``{name: value}`` for the box under it.
    dpi
        Resolution of the figures, dots per inch.

    Returns
    -------
    The path of the file.

    Raises
    ------
    TypeError
        Content of another kind.
    PermissionError
        The folder cannot be written to.

    Examples
    --------
    >>> import pandas as pd
    >>> from histoweave.report import write_report
    >>> scores = pd.DataFrame({"arm": ["fused", "majority"], "macro_f1": [0.81, 0.12]})
    >>> write_report("report.html", title="Section A1", sections=[("Scores", scores)]).name
    'report.html'
    """
    path = Path(path)
    rows = "".join(f"<dt>{_text(k)}</dt><dd>{_text(_value(v))}</dd>\n" for k, v in (summary or {}).items())
    body = [f"<h1>{_text(title)}</h1>", _paragraphs(intro), f"<dl>\n{rows}</dl>" if rows else ""]
    for heading, content in sections:
        parts = content if isinstance(content, list | tuple) else [content]
        blocks = "\n".join(_block(part, heading, dpi) for part in parts)
        body.append(f"<section>\n<h2>{_text(heading)}</h2>\n{blocks}\n</section>")
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<footer>Written by histoweave {_text(__version__)}.</footer>\n</body>\n</html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def write_ablation(path: str | os.PathLike[str], results: pd.DataFrame, *, title: str = "Ablation") -> Path:
    """Write a report of an ablation: forest plot, paired differences, nulls, and what the folds could show.

    Parameters
    ----------
    path
        File to write.
    results
        What ``hw.tl.ablation`` returns.
    title
        Title of the page.

    Returns
    -------
    The path of the file.

    Raises
    ------
    KeyError, TypeError, ValueError
        ``results`` is something else, see ``hw.pl.ablation``.

    Examples
    --------
    >>> import histoweave as hw
    >>> from histoweave.report import write_ablation
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> hw.pp.split(sections, by="donor", n_folds=3)
    >>> model = hw.models.RegionClassifier(image=None, fusion_options={"heads": "linear"})
    >>> scores = hw.tl.ablation(sections, model=model, reference="gene", seeds=[0])
    >>> write_ablation("ablation.html", scores).name
    'ablation.html'
    """
    from histoweave._report import ablation_sections

    sections, summary = ablation_sections(results)
    return write_report(path, title=title, sections=sections, summary=summary)


def _text(value: Any) -> str:
    return escape(str(value))


def _paragraphs(text: str) -> str:
    return "\n".join(f"<p>{_text(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _block(content: Any, heading: str, dpi: int) -> str:
    if isinstance(content, str):
        return _paragraphs(content)
    if isinstance(content, pd.DataFrame):
        return _table(content)
    if hasattr(content, "savefig"):
        buffer = io.BytesIO()
        content.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return f'<img alt="{_text(_description(content, heading))}" src="data:image/png;base64,{data}">'
    msg = (
        f"Section {heading!r}: content must be text, a matplotlib Figure or a DataFrame, got {type(content).__name__}."
    )
    raise TypeError(msg)


def _description(figure: Figure, heading: str) -> str:
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    return f"{heading}: {'; '.join(titles)}" if titles else heading


def _table(frame: pd.DataFrame) -> str:
    """Return a table; the index is shown unless it only counts rows."""
    named = not isinstance(frame.index, pd.RangeIndex)
    columns = [_column(name, frame.iloc[:, place]) for place, name in enumerate(frame.columns)]
    corner = f'<th scope="col">{_text(frame.index.name or "")}</th>' if named else ""
    head = corner + "".join(f'<th scope="col"{css}>{_text(name)}</th>' for name, css, _ in columns)
    lines = []
    for row, label in enumerate(frame.index):
        first = f'<th scope="row">{_text(_value(label))}</th>' if named else ""
        cells = "".join(f"<td{css}>{_text(values[row])}</td>" for _, css, values in columns)
        lines.append(f"<tr>{first}{cells}</tr>")
    rows = "\n".join(lines)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    return f'<div class="wide">{table}</div>'


def _column(name: Any, values: pd.Series) -> tuple[Any, str, list[str]]:
    """Return name, attributes and cells of a column; numbers stand to the right, with the same decimals."""
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return name, "", [_value(v) for v in values]
    whole = bool((values.dropna() % 1 == 0).all())
    return name, ' class="number"', [_value(v, whole=whole) for v in values]


def _value(value: Any, *, whole: bool = True) -> str:
    """Write a value for reading: three decimals below 1000, none if ``whole``, a dash where it is missing."""
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        if abs(value) >= 1000 or (whole and value == np.floor(value)):
            return f"{value:.0f}"
        return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2g}"
    return str(value)
