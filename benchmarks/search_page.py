"""docs/search.md and docs/search.png, from the results that benchmarks.search keeps."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.setting import markdown

if TYPE_CHECKING:
    from matplotlib.artist import Artist

_COLUMNS = (
    "engine",
    "setting",
    "recall@10",
    "queries/s, one at a time",
    "p50 ms",
    "p99 ms",
    "queries/s, batches of 64",
    "build s",
    "index, bytes per vector",
)
_INTRODUCTION = """# Search

`python -m benchmarks.search` measures every engine in one run on the same vectors, 128 dimensions, L2, 10 neighbours;
it writes this page and the plot. All engines are built first, then asked in turn, several times; rates are medians over
these repeats, latencies are of all single queries. One client asks, one query after the other; every search runs in one
thread, and builds may use all cores. Recall is against exact search in float64.

- **FAISS** is called directly; **FaissIndex** is the service's index in process, on the same FAISS index, at the
  setting that the service serves it with (tail, tombstones and lock included). That setting was chosen when the index
  was built, as a worker chooses it: by queries that the gallery has been asked, here by 200 that are neither in the
  gallery nor among those that recall is measured with.
- **service** is an API process with PostgreSQL, asked over HTTP with JSON; its answers have the items' ids, labels and
  metadata out of PostgreSQL, and its build reads the rows from there.
- **pgvector** is HNSW over `halfvec` in the service's embedded PostgreSQL (128 MB of shared buffers) over a Unix
  socket; a batch is one statement. **Qdrant Edge** is Qdrant's engine, float16 vectors, in a process of its own that
  measures itself.
- Every graph has 32 links and was built with a width (ef_construction) of 80. Bytes are of the index as it is saved,
  the vectors or codes in it included.

![Recall against queries per second](search.png)

"""
_LEAST_MISSED = 1e-4  # a recall nearer to 1 is drawn here
_TICKS = {1 - float(r): r for r in ("0", "0.5", "0.8", "0.9", "0.95", "0.98", "0.99", "0.995", "0.998", "0.999")}
_TICKS[_LEAST_MISSED] = "0.9999+"


def write_page(folder: Path, page: Path) -> None:
    """Write the page and the plot beside it."""
    results = sorted((json.loads(path.read_text()) for path in folder.glob("*.json")), key=lambda r: int(r["items"]))
    page.write_text(_INTRODUCTION + "\n".join(_section(result) for result in results))
    _draw(results, page.with_suffix(".png"))


def _section(result: dict[str, Any]) -> str:
    lines = [
        f"## {result['items']:,} vectors\n",
        f"{result['source']} {result['queries']:,} queries, {result['repeats']} repeats.\n",
        markdown(_COLUMNS, [_cells(row) for row in result["rows"]]),
        *(f"- {line}" for line in [*result["budgets"], *result["missing"]]),
        f"\nMade on {result['made_on']}; it took {result['minutes']:.0f} minutes.\n",
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["engine"],
        row["setting"],
        f"{row['recall']:.4f}",
        f"{statistics.median(row['single']):,.0f}",
        f"{row['p50_ms']:.2f}",
        f"{row['p99_ms']:.2f}",
        f"{statistics.median(row['batch']):,.0f}",
        f"{row['build_seconds']:,.1f}",
        f"{row['bytes_per_vector']:,.0f}",
    ]


def _draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """A column for each size; a line for each engine, from its fastest setting to its most exact one."""
    figure = Figure(figsize=(1 + 5.5 * len(results), 9), layout="constrained")
    panels = figure.subplots(2, len(results), squeeze=False)
    engines = [row["engine"] for result in results for row in result["rows"]]
    colors = {index: f"C{number}" for number, index in enumerate(dict.fromkeys(map(_index_of, engines)))}
    handles: dict[str, Artist] = {}
    for column, result in enumerate(results):
        for panel, rates, how in zip(
            panels[:, column], ("single", "batch"), ("one at a time", "batches of 64"), strict=True
        ):
            _draw_panel(panel, result["rows"], rates, colors)
            panel.set_title(f"{result['items']:,} vectors, {how}")
            drawn, names = panel.get_legend_handles_labels()
            handles |= dict(zip(names, drawn, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def _index_of(engine: str) -> str:
    return engine.removeprefix("FAISS ").removeprefix("FaissIndex ")


def _draw_panel(panel: Axes, rows: Sequence[dict[str, Any]], rates: str, colors: dict[str, str]) -> None:
    """The axis of recall is logarithmic in what is missed: between 0.99 and 1 lies what matters."""
    for name in dict.fromkeys(row["engine"] for row in rows):
        chosen = [row for row in rows if row["engine"] == name]
        missed = [max(1 - row["recall"], _LEAST_MISSED) for row in chosen]
        rate = [statistics.median(row[rates]) for row in chosen]
        color = colors[_index_of(name)]
        if name.startswith("FaissIndex"):
            panel.plot(missed, rate, "*", color=color, markersize=14, markeredgecolor="black", label=name)
        else:
            panel.plot(missed, rate, "o-", color=color, label=name)
    panel.set_xscale("log")
    panel.set_yscale("log")
    left, right = panel.get_xlim()
    panel.set_xticks(list(_TICKS), list(_TICKS.values()), rotation=45)
    panel.set_xticks([], minor=True)
    panel.set_xlim(max(right, 0.02), left)
    panel.set_xlabel("recall@10")
    panel.set_ylabel("queries/s")
    panel.grid(which="both", alpha=0.3)
