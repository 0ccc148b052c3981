"""What the demonstration shows: tables in the terminal, and a page that a visitor may forward: pictures first."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from rich.table import Table

from demo.client import Neighbor
from demo.data import LabelledImages
from gallery_upgrade.api.models import ReportView
from models.metrics import RetrievalMetrics, gap_closed

DEFAULT, PAPER = "new/h(old)", "new/h(old), paper's recipe"
_TINY = 48  # pixels
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
    on the upgrade by the default h. `queries` is how many were asked."""

    metrics: dict[str, Measured]
    depth: int
    queries: int
    report: ReportView
    examples: list["Example"]


@dataclass(frozen=True)
class StepTime:
    name: str
    seconds: float
    items: int | None


@dataclass(frozen=True)
class Example:
    """One query, by position in the gallery images, and its neighbours under the old and the new version; `is_worse` is
    the one that got worse most."""

    position: int
    before: list[Neighbor]
    after: list[Neighbor]
    is_worse: bool


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


def verdict_table(report: ReportView) -> Table:
    """Return the gates of the report on the upgrade by the default h."""
    title = f"What the upgrade was judged by: {report.verdict}, on {report.evidence:,} images given again"
    table = Table("gate", "measured", "95 % interval", "not below", "n", "outcome", title=title)
    for gate in report.content["gates"]:
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


def write_page(path: Path, found: Findings, tables: list[Table], gallery: LabelledImages) -> None:
    """Write one HTML file that needs nothing else: queries before and after, then how good and how fast it was."""
    old, new, anew = (found.metrics[row].retrieval for row in ("old/old", DEFAULT, "new/new"))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    bars = [("before", "old", old.cmc1), ("after, transformed", "new", new.cmc1), ("encoded anew", "anew", anew.cmc1)]
    page = environment.get_template("page.html").render(
        gallery=gallery,
        queries=found.queries,
        examples=found.examples,
        old=old,
        new=new,
        anew=anew,
        bars=bars,
        gap=gap_closed(old.cmc1, new.cmc1, anew.cmc1),
        report=found.report,
        tables=[_shown(table) for table in tables],
        picture=lambda position: _image(position, gallery),
        label_of=lambda position: gallery.classes[gallery.labels[position]],
    )
    path.write_text(page, encoding="utf-8")


@dataclass(frozen=True)
class ShownTable:
    """A table of the terminal, for the page."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def _shown(table: Table) -> ShownTable:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return ShownTable(str(table.title), [str(column.header) for column in table.columns], rows)


def _values(metrics: RetrievalMetrics) -> tuple[float, float, float]:
    return metrics.cmc1, metrics.cmc5, metrics.map


def _image(position: int, gallery: LabelledImages) -> Markup:
    """Return an image of the gallery, inside the page; one of few pixels is shown as those."""
    data = gallery.files[position]
    with Image.open(io.BytesIO(data)) as image:
        is_tiny, kind = max(image.size) < _TINY, Image.MIME[image.format or "PNG"]
    return Markup('<img alt=""{} src="data:{};base64,{}">').format(
        Markup(' class="tiny"') if is_tiny else "", kind, base64.b64encode(data).decode()
    )
