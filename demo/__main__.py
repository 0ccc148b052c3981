"""`make demo`: train, register, ingest, query, upgrade, query again, and report. Read it from top to bottom."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.metrics import average_precision_score

import gallery_upgrade
from demo.client import (
    Neighbor,
    post_images,
    register_transformation,
    register_version,
    search_images,
    search_vectors,
    serving,
    upgrade,
)
from demo.data import LabelledImages, load_digits, load_images, split
from demo.report import (
    DEFAULT,
    PAPER,
    Example,
    Findings,
    Measured,
    StepTime,
    quality_table,
    time_table,
    verdict_table,
    write_page,
)
from demo.training import DIGITS, PHOTOGRAPHS, Networks, Recipe, embed, train_everything
from models.image_sets import NoImages
from models.metrics import RetrievalMetrics

MAX_DEPTH = 1000  # the most neighbours that one answer has
_EXAMPLES = 6
Neighbors = list[list[Neighbor]]


class Steps:
    """Shows each step's progress bar, or a line at its end where there is no terminal, and keeps its time."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self.times: list[StepTime] = []

    def _end(self, name: str, started: float, items: int | None) -> None:
        self.times.append(StepTime(name, time.monotonic() - started, items))
        if self._bars.disable:
            self._bars.console.print(f"{name}: {self.times[-1].seconds:.0f} s")

    @contextmanager
    def step(self, name: str, items: int | None = None) -> Iterator[Callable[[int, int], None]]:
        task = self._bars.add_task(name, total=None)
        started = time.monotonic()
        yield lambda done, total: self._bars.update(task, completed=done, total=total)
        self._bars.update(task, total=1, completed=1)
        self._end(name, started, items)

    def bar(self, name: str) -> Callable[[int, int], None]:
        """Return a progress callback whose step ends when it reports its last part."""
        task = self._bars.add_task(name, total=None)
        started = time.monotonic()

        def report(done: int, total: int) -> None:
            self._bars.update(task, completed=done, total=total)
            if done == total:
                self._end(name, started, None)

        return report


def run(
    images: Annotated[Path | None, typer.Option(help="A folder of class folders, or Parquet (image, label).")] = None,
    queries: Annotated[int, typer.Option(help="How many gallery images are asked for.")] = 1000,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("demo.html"),
    keep: Annotated[bool, typer.Option(help="Go on serving the demo's galleries until Ctrl-C.")] = False,
) -> None:
    """Show what an upgrade is worth, on scikit-learn's digits or on your own images."""
    torch.set_num_threads(os.cpu_count() or 1)
    console = Console()
    recipe = DIGITS if images is None else PHOTOGRAPHS
    try:
        training, gallery = split(load_digits() if images is None else load_images(images))
    except (NoImages, OSError) as error:
        console.print(f"demo: {error}", style="red")
        raise typer.Exit(1) from error
    console.print(
        f"{len(training):,} images to train on, {len(gallery):,} in the gallery, {len(gallery.classes)} classes"
    )

    columns = (TextColumn("{task.description:28}"), BarColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    with bars, tempfile.TemporaryDirectory(prefix="demo-") as folder:
        steps = Steps(bars)
        networks = train_everything(training, recipe, steps.bar)
        with serving(Path(folder), steps.bar("start the service")) as client:
            found = measure(client, networks, recipe, gallery, queries, steps)
            bars.stop()
            _show(console, found, steps, gallery, output)
            if keep:
                console.print(f"The console, with the demo's galleries: {client.url}/ until Ctrl-C")
                with suppress(KeyboardInterrupt):
                    threading.Event().wait()
            else:
                console.print("The console with these galleries, to look around in: make demo KEEP=1")


def _show(console: Console, found: Findings, steps: Steps, gallery: LabelledImages, output: Path) -> None:
    """Print what was found, and write the page."""
    judged = [verdict_table(found.report), quality_table(found.metrics, found.depth, len(gallery))]
    tables = [*judged, time_table(steps.times)]
    for table in tables:
        console.print(table)
    write_page(output, found, tables, gallery)
    console.print(f"A few queries, before and after: {output.resolve()}")


def measure(
    client: gallery_upgrade.Client,
    networks: Networks,
    recipe: Recipe,
    gallery: LabelledImages,
    queries: int,
    steps: Steps,
) -> Findings:
    """Do everything that goes over HTTP."""
    with steps.step("register versions, h and g"):
        register_version(client, "v1", recipe, networks.old_encoder, networks.old_side_information)
        register_version(client, "v2", recipe, networks.new_encoder, networks.new_side_information)
        h = register_transformation(client, "v1", "v2", networks.h, networks.g)
        paper_h = register_transformation(client, "v1", "v2", networks.paper_h, networks.g)
        photos = client.galleries.create("photos", model_version="v1")
        by_the_paper = client.galleries.create("by-the-paper", model_version="v1")
        # What the upgrade saves: here only to compare with.
        re_encoded = client.galleries.create("re-encoded", model_version="v2")

    asked = np.sort(np.random.default_rng(0).permutation(len(gallery))[:queries])
    files = [gallery.files[position] for position in asked]
    depth = min(MAX_DEPTH, len(gallery))
    answers: dict[str, Neighbors] = {}

    with steps.step("ingest under v1", len(gallery)) as progress:
        post_images(client, photos, gallery, progress)
    with steps.step("query old/old", len(files)) as progress:
        answers["old/old"] = search_images(photos, files, depth, progress)
    with steps.step("query new/old", len(files)) as progress:
        vectors = embed(networks.new_encoder, gallery.take(asked), recipe)
        answers["new/old"] = search_vectors(photos, vectors, depth, progress)

    with steps.step("upgrade v1 -> v2", len(gallery)) as progress:
        report = upgrade(photos, "v2", h, gallery, progress)
    with steps.step("query new/h(old)", len(files)) as progress:
        answers[DEFAULT] = search_images(photos, files, depth, progress)

    with steps.step("the same with the paper's recipe, to compare", 2 * len(gallery)) as progress:
        post_images(client, by_the_paper, gallery, progress)
        upgrade(by_the_paper, "v2", paper_h, gallery, progress)
        answers[PAPER] = search_images(by_the_paper, files, depth, progress)
    with steps.step("ingest under v2, to compare", len(gallery)) as progress:
        post_images(client, re_encoded, gallery, progress)
    with steps.step("query new/new", len(files)) as progress:
        answers["new/new"] = search_images(re_encoded, files, depth, progress)

    metrics = {row: _metrics(found, asked, gallery) for row, found in answers.items()}
    return Findings(metrics, depth, len(asked), report, _examples(answers, asked, gallery))


def _metrics(answers: Neighbors, asked: np.ndarray, gallery: LabelledImages) -> Measured:
    """Return the metrics of answers, each query's own image removed from its ranking but where it is asked for.

    Where answers are not as deep as the gallery, average precision counts what lies below them as never found.
    """
    counts = np.bincount(gallery.labels, minlength=len(gallery.classes))
    first_match, precisions = [], []
    for neighbors, position in zip(answers, asked, strict=True):
        others = [neighbor for neighbor in neighbors if neighbor.id != str(position)]
        label = gallery.classes[gallery.labels[position]]
        matches = np.array([neighbor.label == label for neighbor in others])
        first_match.append(int(matches.argmax()) if matches.any() else len(gallery))
        scores = [-neighbor.distance for neighbor in others]
        found = average_precision_score(matches, scores) if matches.any() else 0.0
        precisions.append(found * matches.sum() / (counts[gallery.labels[position]] - 1))
    ranks = np.array(first_match)
    retrieval = RetrievalMetrics(float((ranks < 1).mean()), float((ranks < 5).mean()), float(np.mean(precisions)))
    own = [found[0].id == str(position) for found, position in zip(answers, asked, strict=True)]
    return Measured(retrieval, float(np.mean(own)))


def _examples(answers: dict[str, Neighbors], asked: np.ndarray, gallery: LabelledImages) -> list[Example]:
    """Return queries whose five nearest changed most for the better, and for fairness one for the worse."""

    def nearest(row: int, kind: str) -> list[Neighbor]:
        return [neighbor for neighbor in answers[kind][row] if neighbor.id != str(asked[row])][:5]

    def right(row: int, kind: str) -> int:
        label = gallery.classes[gallery.labels[asked[row]]]
        return sum(neighbor.label == label for neighbor in nearest(row, kind))

    gains = [right(row, DEFAULT) - right(row, "old/old") for row in range(len(asked))]
    order = sorted(range(len(asked)), key=lambda row: -gains[row])
    chosen = [*order[: _EXAMPLES - 1], order[-1]]
    return [
        Example(int(asked[row]), nearest(row, "old/old"), nearest(row, DEFAULT), is_worse=gains[row] < 0)
        for row in chosen
    ]


if __name__ == "__main__":
    typer.run(run)
