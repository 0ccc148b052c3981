"""What the demonstration shows: a table in the terminal, and a page with queries before and after."""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.data import LabelledImages
from models.metrics import RetrievalMetrics, gap_closed

DEFAULT, PAPER = "new/h(old)", "new/h(old), paper's recipe"
ROWS = ("old/old", "new/old", PAPER, DEFAULT, "new/new")


@dataclass(frozen=True)
class Measured:
    """What a row of the table says. own_item_first: how often a query's own image, by its stored embedding, is the
    nearest of all; the other metrics leave it out."""

    retrieval: RetrievalMetrics
    own_item_first: float


@dataclass(frozen=True)
class Findings:
    """What was found over HTTP: metrics by row of the table, how deep the rankings were, and the service's own report
    on the upgrade by the default h."""

    metrics: dict[str, Measured]
    depth: int
    report: dict[str, Any]
    examples: list["Example"]


@dataclass(frozen=True)
class StepTime:
    name: str
    seconds: float
    items: int | None


@dataclass(frozen=True)
class Example:
    """One query, by position in the gallery images, and its neighbours under the old and the new version."""

    position: int
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]


def quality_table(metrics: dict[str, Measured], depth: int, gallery: int) -> Table:
    """Return the table of metrics; mAP is over the whole ranking when answers are as deep as the gallery."""
    mean_average_precision = "mAP" if depth >= gallery else f"mAP (first {depth})"
    columns = ("query/gallery", "CMC@1", "CMC@5", mean_average_precision, "own item first")
    table = Table(*columns, title="Retrieval, over HTTP")
    for row in ROWS:
        values = (*_values(metrics[row].retrieval), metrics[row].own_item_first)
        table.add_row(row, *(f"{value:.1%}" for value in values))
    table.add_section()
    for row, title in ((PAPER, "gap closed, paper's recipe"), (DEFAULT, "gap closed")):
        compared = (_values(metrics[name].retrieval) for name in ("old/old", row, "new/new"))
        table.add_row(title, *(f"{gap_closed(*column):.1%}" for column in zip(*compared, strict=True)))
    return table


def verdict_table(report: dict[str, Any]) -> Table:
    """Return the gates of the report on the upgrade by the default h."""
    title = f"What the upgrade was judged by: {report['verdict']}, on {report['evidence']:,} images given again"
    table = Table("gate", "measured", "95 % interval", "not below", "n", "outcome", title=title)
    for gate in report["content"]["gates"]:
        interval = f"{gate['low']:+.3f} to {gate['high']:+.3f}"
        name = gate["metric"] if gate["slice"] is None else f"{gate['metric']} ({gate['slice']})"
        cells = (name, f"{gate['value']:+.3f}", interval, f"{gate['limit']:g}", f"{gate['n']:,}", gate["outcome"])
        table.add_row(*cells)
    return table


def time_table(times: list[StepTime]) -> Table:
    table = Table("step", "seconds", "items", "items/s", title="Time")
    for step in times:
        rate = f"{step.items / step.seconds:,.0f}" if step.items and step.seconds > 0 else ""
        table.add_row(step.name, f"{step.seconds:.1f}", "" if step.items is None else f"{step.items:,}", rate)
    return table


def write_page(path: Path, tables: list[Table], examples: list[Example], gallery: LabelledImages) -> None:
    """Write one HTML file that needs nothing else: the tables, and each example's neighbours in two rows."""
    console = Console(record=True, width=100, file=io.StringIO())
    for table in tables:
        console.print(table)
    figures = "\n".join(_example(example, gallery) for example in examples)
    text = html.escape(console.export_text())
    path.write_text(_PAGE.format(tables=text, figures=figures), encoding="utf-8")


def _values(metrics: RetrievalMetrics) -> tuple[float, float, float]:
    return metrics.cmc1, metrics.cmc5, metrics.map


def _example(example: Example, gallery: LabelledImages) -> str:
    label = gallery.classes[gallery.labels[example.position]]
    rows = "".join(
        f"<tr><th>{title}</th>{''.join(_neighbor(neighbor, label, gallery) for neighbor in neighbors)}</tr>"
        for title, neighbors in (("before", example.before), ("after", example.after))
    )
    query = _image(example.position, gallery)
    caption = f"<figcaption>query: {html.escape(label)}</figcaption>"
    return f"<section><figure>{query}{caption}</figure><table>{rows}</table></section>"


def _neighbor(neighbor: dict[str, Any], label: str, gallery: LabelledImages) -> str:
    right = "right" if neighbor["label"] == label else "wrong"
    caption = f"{html.escape(str(neighbor['label']))} · {neighbor['distance']:.2f}"
    image = _image(int(neighbor["id"]), gallery)
    return f'<td class="{right}"><figure>{image}<figcaption>{caption}</figcaption></figure></td>'


def _image(position: int, gallery: LabelledImages) -> str:
    data = base64.b64encode(gallery.files[position]).decode()
    label = html.escape(gallery.classes[gallery.labels[position]])
    return f'<img alt="{label}" src="data:image/*;base64,{data}">'


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>gallery-upgrade: before and after</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
section {{ display: flex; gap: 2rem; align-items: center; border-top: 1px solid #ccc; padding: 1rem 0; }}
figure {{ margin: 0; text-align: center; font-size: .8rem; }}
img {{ width: 72px; height: 72px; object-fit: contain; image-rendering: pixelated; }}
td {{ padding: .3rem; border: 3px solid; }} .right {{ border-color: #2a7; }} .wrong {{ border-color: #c33; }}
</style>
<h1>Before and after the upgrade</h1>
<p>Each query's nearest neighbours in the gallery, itself left out: answered by the old model version, and, after the
upgrade, by the new one on embeddings that were transformed without touching an image. Green is the query's class; the
number is the distance.</p>
<pre>{tables}</pre>
{figures}
</html>
"""
