"""Artifacts as one HTML page and one JSON file: figures, plots and explanations, with nothing fetched from anywhere.

Both are written whole or not at all; the page can be read in light and in dark, by eye and by ear.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import msgspec

from codriver.core.errors import DiskFull, SetupError

from . import report_plots as plots
from .report_data import Latency, ReportData, SizeTruth, Told, gather
from .report_plots import label


def write(folders: Sequence[Path], file: Path) -> ReportData:
    """``file`` and, beside it, the same as JSON. Errors: those of :func:`gather`, :class:`DiskFull`, :class:`SetupError`."""
    data = gather(folders)
    save(file.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(data), indent=1).decode() + "\n")
    save(file, page(data))
    return data


def save(file: Path, content: str) -> None:
    """Errors: :class:`DiskFull`, :class:`SetupError` naming the file."""
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(content, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"There is no room for {file}; nothing of it was kept.") from error
        raise SetupError(f"The report {file} cannot be written: {error.strerror}.") from error


def page(data: ReportData) -> str:
    names = ", ".join(dict.fromkeys(one.artifact.name for one in data.artifacts))
    return _framed(
        f"Artifacts of {names}",
        [
            "<section><h2>Side by side</h2>",
            table(data.artifacts),
            "<p class='small'>A figure in italics is predicted, not measured; its note says how wrong predictions were on the "
            "machine that they were calibrated on.</p></section>",
            _fronts(data),
            *(_artifact(one) for one in data.artifacts),
        ],
    )


def comparison(data: ReportData) -> str:
    """One table and one plot: size against KL."""
    return _framed("Artifacts side by side", [table(data.artifacts), _fronts(msgspec.structs.replace(data, fronts=data.fronts[:1]))])


def _framed(title: str, sections: Sequence[str]) -> str:
    template = Template(files("codriver.optimize").joinpath("report.html").read_text("utf-8"))
    return template.substitute(title=escape(title), sections="".join(sections))


def table(told: Sequence[Told]) -> str:
    """One row per metric, one column per artifact."""
    metrics = list(dict.fromkeys(one.metric for each in told for one in each.artifact.card))
    head = "".join(f"<th scope='col'>{escape(label(one))}</th>" for one in told)
    rows = [f"<tr><th scope='row'>bits per weight</th>{''.join(f'<td>{one.artifact.bits_per_weight:.3f}</td>' for one in told)}</tr>"]
    for metric in metrics:
        cells = "".join(_cell(one, metric) for one in told)
        rows.append(f"<tr><th scope='row'>{escape(metric)}</th>{cells}</tr>")
    return f"<div class='wide'><table><caption class='small'>What each card says; in brackets the 95 % interval and n.</caption><thead><tr><th scope='col'>metric</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _cell(told: Told, metric: str) -> str:
    one = next((row for row in told.artifact.card if row.metric == metric), None)
    if one is None:
        return "<td>–</td>"
    value = f"{one.value / 1e6:,.1f} MB" if one.unit == "bytes" else f"{one.value:,.4g} {escape(one.unit)}"
    extra = f"n = {one.n}" if one.n > 1 else ""
    if one.low is not None and one.high is not None and one.unit != "bytes":
        extra = f"{one.low:,.4g} to {one.high:,.4g}{', ' + extra if extra else ''}"
    predicted = one.note.startswith("predicted")
    shown = f"<i>{value}</i>, predicted" if predicted else value
    return f"<td title='{escape(one.note)}'>{shown}{f'<br><span class=small>[{extra}]</span>' if extra else ''}</td>"


def _fronts(data: ReportData) -> str:
    drawn = [plots.pareto(front, data.artifacts) for front in data.fronts if front.points]
    if not drawn:
        return ""
    words = (
        "<p class='small'>Lower is better on both axes. On the front, joined by a dashed line and named in bold, is what no "
        "other artifact here beats in one without losing in the other.</p>"
    )
    return f"<section><h2>What is bought with what</h2>{''.join(drawn)}{words}</section>"


def _artifact(one: Told) -> str:
    parts = [f"<section><h2>{escape(label(one))}</h2>"]
    if one.size is not None:
        parts.append(_size(one.size))
    parts.append("<h3>Sensitivity by layer</h3>")
    if one.sensitivity:
        parts += [
            plots.sensitivity(one.sensitivity),
            "<p class='small'>What the model is expected to lose when a layer's matrices are rounded to about 4.5 bits, from "
            "the KL that was measured when groups of layers were rounded.</p>",
        ]
    else:
        parts.append("<p>The artifact keeps none.</p>")
    parts += [_latency(one.latency), _provenance(one), "</section>"]
    return "".join(parts)


def _size(size: SizeTruth) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(one.type)}</th><td>{one.tensors}</td><td>{one.weights:,}</td>"
        f"<td>{one.size_bytes / 1e6:,.2f}</td><td>{one.bits:.3f}</td></tr>"
        for one in size.types
    )
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in size.told)
    each = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{escape(kind)}</td></tr>" for name, kind in size.tensors.items())
    return (
        f"<h3>What is really in it</h3><p>{size.size_bytes / 1e6:,.2f} MB for {size.weights / 1e6:,.1f} million weights: "
        f"{size.bits:.3f} bits per weight. The file calls itself {escape(size.named or 'nothing')}.</p>"
        f"<div class='wide'><table><thead><tr><th scope='col'>type</th><th scope='col'>tensors</th><th scope='col'>weights</th>"
        f"<th scope='col'>MB</th><th scope='col'>bits per weight</th></tr></thead><tbody>{rows}</tbody></table></div>"
        + (f"<ul>{told}</ul>" if told else "<p>No type was put in silently.</p>")
        + f"<details><summary>The type of each of {len(size.tensors)} tensors</summary><div class='wide'><table class='dense'>"
        f"<thead><tr><th scope='col'>tensor</th><th scope='col'>type</th></tr></thead><tbody>{each}</tbody></table></div></details>"
    )


def _latency(rows: Sequence[Latency]) -> str:
    runs = [row for row in rows if row.samples]
    parts = ["<h3>Latency</h3>"]
    if not runs:
        why = rows[0].note if rows else "the card has none"
        return "".join([*parts, f"<p>No single runs are kept: {escape(why)}.</p>"])
    parts.append(plots.latencies(runs))
    shares = [f"{tail.share:.1%}".replace(".0%", "%") for tail in runs[0].tails]
    head = "".join(f"<th scope='col'>{share}</th>" for share in shares)
    body = []
    for row in runs:
        interval = f"{row.low:.4g} to {row.high:.4g}" if row.low is not None and row.high is not None else f"none from {row.n} runs; 6 are needed"
        cells = "".join(
            f"<td>{tail.value:.4g}</td>" if tail.value is not None else f"<td>– <span class='small'>needs {tail.needed:,} runs</span></td>"
            for tail in row.tails
        )
        body.append(f"<tr><th scope='row'>{escape(row.metric)}, {escape(row.unit)}</th><td>{row.n}</td><td>{row.median:.4g}</td><td>{interval}</td>{cells}</tr>")
    return "".join(
        [
            *parts,
            "<div class='wide'><table><thead><tr><th scope='col'>metric</th><th scope='col'>n</th><th scope='col'>median</th>"
            f"<th scope='col'>95 % interval</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>",
            "<p class='small'>Percentiles are those of MLPerf's LoadGen (early stopping, 99 % sure): above the plain percentile, "
            "and told only where there are runs enough. The slow end counts: late first tokens, few tokens a second.</p>",
        ]
    )


def _provenance(one: Told) -> str:
    artifact = one.artifact
    made = "".join(f"<li>{escape(step)}</li>" for step in artifact.lineage)
    held = "".join(
        f"<li>{escape(file.name)}, {escape(file.format)}, {file.size_bytes:,} bytes, <code>sha256:{escape(file.sha256)}</code></li>"
        for file in artifact.files
    )
    return (
        f"<h3>Where it comes from</h3><dl><dt>model</dt><dd>{escape(artifact.name)}</dd><dt>licence</dt><dd>{escape(artifact.licence)}"
        f"</dd><dt>made for</dt><dd>{escape(artifact.target)}</dd><dt>files</dt><dd><ul>{held}</ul></dd><dt>made from, in order</dt>"
        f"<dd><ol>{made}</ol></dd></dl>"
    )
