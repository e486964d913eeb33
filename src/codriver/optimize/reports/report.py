"""Artifacts as one HTML page and one JSON file: figures, plots and explanations, with nothing fetched from anywhere.

Both are written whole or not at all; the page can be read in light and in dark, by eye and by ear.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import msgspec

from codriver.core.errors import BadConfigValue

from ..saving import save
from . import report_plots as plots
from . import search_plot
from .report_data import Latency, ReportData, SizeTruth, Told, gather
from .report_plots import label


def write(folders: Sequence[Path], file: Path) -> ReportData:
    """``file`` and, beside it, the same as JSON. Errors: those of :func:`gather` and :func:`save`."""
    data = gather(folders)
    save(file.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(data), indent=1).decode() + "\n")
    save(file, page(data))
    return data


def write_comparison(folders: Sequence[Path], file: Path) -> None:
    """One plot, size against KL, as ``.svg``; with the table as ``.html``. Errors: as :func:`write`;
    :class:`BadConfigValue` for another ending, or artifacts without a KL.
    """
    if file.suffix not in (".svg", ".html"):
        raise BadConfigValue(f"The plot {file} must end in .svg or .html.", param="plot")
    data = gather(folders)
    if not data.fronts[0].points:
        raise BadConfigValue("None of the artifacts has both a size and a KL: there is nothing to plot.", param="plot")
    if file.suffix == ".html":
        save(file, comparison(data))
        return
    style = _template().split("<style>")[1].split("</style>")[0]
    drawn = plots.pareto(data.fronts[0], data.artifacts)
    save(
        file,
        drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
            "<title>", f"<style>{style}</style><title>", 1
        ),
    )


def page(data: ReportData) -> str:
    names = ", ".join(dict.fromkeys(one.artifact.name for one in data.artifacts))
    words = (
        "A figure in italics is predicted, not measured: point at it to read how wrong predictions were on the machine "
        "that they were calibrated on."
    )
    side = f"<section><h2>Side by side</h2>{table(data.artifacts)}<p class='small'>{words}</p></section>"
    return _framed(
        f"Artifacts of {names}",
        [side, _fronts(data), *(_artifact(one, f"hatch-{number}") for number, one in enumerate(data.artifacts))],
    )


def comparison(data: ReportData) -> str:
    """One table and one plot: size against KL."""
    plot = _fronts(msgspec.structs.replace(data, fronts=data.fronts[:1]))
    return _framed("Artifacts side by side", [table(data.artifacts), plot])


def _framed(title: str, sections: Sequence[str]) -> str:
    return Template(_template()).substitute(title=escape(title), sections="".join(sections))


def _template() -> str:
    return files("codriver.optimize.reports").joinpath("report.html").read_text("utf-8")


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """A table of cells that are HTML already; the first of each row is its name."""
    top = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    body = ""
    for first, *rest in rows:
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in rest)
        body += f"<tr><th scope='row'>{first}</th>{cells}</tr>"
    told = f"<caption>{caption}</caption>" if caption else ""
    table = f"<table class='{kind}'>{told}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='wide' tabindex='0'>{table}</div>"


def table(told: Sequence[Told]) -> str:
    """One row per metric, one column per artifact."""
    metrics = dict.fromkeys(one.metric for each in told for one in each.artifact.card)
    rows = [["bits per weight", *(f"{one.artifact.bits_per_weight:.3f}" for one in told)]]
    rows += [[escape(metric), *(_cell(one, metric) for one in told)] for metric in metrics]
    caption = "What each card says. In brackets the 95 % interval, or the lowest and the highest of the runs, and n."
    return _grid(["metric", *(escape(label(one)) for one in told)], rows, caption)


def _cell(told: Told, metric: str) -> str:
    one = next((row for row in told.artifact.card if row.metric == metric), None)
    if one is None:
        return "–"
    value = f"{one.value / 1e6:,.1f} MB" if one.unit == "bytes" else f"{one.value:,.4g} {escape(one.unit)}"
    extra = f"n = {one.n}" if one.n > 1 else ""
    if one.low is not None and one.high is not None and one.unit != "bytes":
        extra = f"{one.low:,.4g} to {one.high:,.4g}{', ' + extra if extra else ''}"
    shown = f"<i>{value}</i>, predicted" if one.predicted else value
    more = f"<br><span class='small'>[{extra}]</span>" if extra else ""
    return f"<td title='{escape(one.note)}'>{shown}{more}</td>"


def _fronts(data: ReportData) -> str:
    drawn = [plots.pareto(front, data.artifacts) for front in data.fronts if front.points]
    if not drawn:
        return ""
    words = (
        "<p class='small'>Lower is better on both axes. On the front, joined by a dashed line and named in bold, is "
        "what no other artifact here beats in one without losing in the other.</p>"
    )
    return f"<section><h2>What is bought with what</h2>{''.join(drawn)}{words}</section>"


def _artifact(one: Told, hatch: str) -> str:
    parts = [f"<section><h2>{escape(label(one))}</h2>"]
    if one.size is not None:
        parts.append(_size(one.size))
    parts.append("<h3>Sensitivity by layer</h3>")
    if one.sensitivity:
        parts += [
            plots.sensitivity(one.sensitivity, hatch),
            "<p class='small'>What the model is expected to lose when a layer's matrices are rounded to about 4.5 "
            "bits, from the KL that was measured when groups of layers were rounded.</p>",
        ]
    else:
        parts.append("<p>The artifact keeps none.</p>")
    parts += [_search(one), _latency(one.latency), _provenance(one), "</section>"]
    return "".join(parts)


def _search(one: Told) -> str:
    if one.search is None:
        return ""
    card = list(one.artifact.card)
    kept = next((record for record in one.search.records if record.state == "measured" and record.card == card), None)
    words = (
        "<p class='small'>Every trial, lower is better on both axes; the dashed line joins what no measured trial "
        "beats. Hollow marks were not measured: their place is what was expected of them.</p>"
    )
    drawn = "".join(search_plot.plots(one.search, kept))
    return f"<h3>What the search tried</h3>{search_plot.told(one.search)}{drawn}{words}"


def _size(size: SizeTruth) -> str:
    types = [
        [escape(one.type), str(one.tensors), f"{one.weights:,}", f"{one.size_bytes / 1e6:,.2f}", f"{one.bits:.3f}"]
        for one in size.types
    ]
    each = [[escape(name), escape(kind)] for name, kind in size.tensors.items()]
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in size.told)
    return "".join(
        [
            f"<h3>What is really in it</h3><p>{size.size_bytes / 1e6:,.2f} MB for {size.weights / 1e6:,.1f} million "
            f"weights: {size.bits:.3f} bits per weight. The file calls itself {escape(size.named or 'nothing')}.</p>",
            _grid(["type", "tensors", "weights", "MB", "bits per weight"], types),
            f"<ul>{told}</ul>" if told else "<p>No type was put in silently.</p>",
            f"<details><summary>The type of each of {len(each)} tensors</summary>",
            _grid(["tensor", "type"], each, kind="dense"),
            "</details>",
        ]
    )


def _latency(rows: Sequence[Latency]) -> str:
    runs = [row for row in rows if row.samples]
    if not runs:
        why = rows[0].note if rows else "the card has none"
        return f"<h3>Latency</h3><p>No single runs are kept: {escape(why)}.</p>"
    words = (
        "<p class='small'>Percentiles are those of MLPerf's LoadGen (early stopping, 99 % sure): above the plain "
        "percentile, and told only where there are runs enough. The slow end counts: late first tokens, few tokens a "
        "second.</p>"
    )
    head = ["metric", "n", "median", "95 % interval", *(f"{100 * tail.share:g} %" for tail in runs[0].tails)]
    grid = _grid(head, [_latency_row(row) for row in runs])
    return f"<h3>Latency</h3>{plots.latencies(runs)}{grid}{words}"


def _latency_row(row: Latency) -> list[str]:
    interval = f"– <span class='small'>{row.n} runs are too few, 6 are needed</span>"
    if row.low is not None and row.high is not None:
        interval = f"{row.low:.4g} to {row.high:.4g}"
    tails = (
        f"– <span class='small'>needs {tail.needed:,} runs</span>" if tail.value is None else f"{tail.value:.4g}"
        for tail in row.tails
    )
    return [f"{escape(row.metric)}, {escape(row.unit)}", str(row.n), f"{row.median:.4g}", interval, *tails]


def _provenance(one: Told) -> str:
    artifact = one.artifact
    made = "".join(f"<li>{escape(step)}</li>" for step in artifact.lineage)
    held = "".join(
        f"<li>{escape(file.name)}, {escape(file.format)}, {file.size_bytes:,} bytes, "
        f"<code>sha256:{escape(file.sha256)}</code></li>"
        for file in artifact.files
    )
    told = {
        "model": escape(artifact.name),
        "licence": escape(artifact.licence),
        "made for": escape(artifact.target),
        "files": f"<ul>{held}</ul>",
        "made from, in order": f"<ol>{made}</ol>",
    }
    entries = "".join(f"<dt>{name}</dt><dd>{words}</dd>" for name, words in told.items())
    return f"<h3>Where it comes from</h3><dl>{entries}</dl>"
