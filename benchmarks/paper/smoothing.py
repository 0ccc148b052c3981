"""What smoothing a gallery's rows gives and costs, by the code that upgrades smooth with.

    python -m benchmarks.paper.smoothing ../shared/data/cifar100

trains what its table needs and no more, prints the table, and what smoothing takes an item.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.paper.classes import SETS
from benchmarks.paper.judging import Galleries, Table
from benchmarks.paper.networks import train_networks
from benchmarks.paper.open_classes import OPEN, OPEN_RECIPES
from benchmarks.paper.transformations import SEEDS, Features, Spec, Vectors, train_transformations
from benchmarks.setting import commit, machine
from service.domain.upgrade.smoothing import smoothed
from service.index.files import build_index
from service.index.smoothing import Neighbourhoods

_NEIGHBORS = 20
_SHARES = {"paper": (0.3, 0.6, 0.8), "default": (0.3, 0.6), "by class": (0.6,)}
_TEXT = (
    "Each row of h moves by a share towards the mean of its {neighbors} nearest rows of the same gallery, as an upgrade"
    " with `smoothing` does. h has learned from images of classes 0 to 79 alone, the known ones; the gallery has all"
    " classes, 100 items each.\n\n"
)


def wanted(seeds: Sequence[int] = SEEDS) -> list[Spec]:
    """Return every h that the table needs."""
    return [replace(OPEN, variant=name, seed=seed) for seed in seeds for name in OPEN_RECIPES]


class SmoothedGalleries:
    """The table, of galleries of all 100 classes."""

    def __init__(self, galleries: Galleries, seeds: Sequence[int] = SEEDS) -> None:
        self._galleries = galleries
        self._seeds = seeds

    def table(self) -> str:
        """Each recipe as h gives it, and smoothed."""
        assert OPEN.classes is not None
        table = Table(self._galleries, OPEN.old, OPEN.new, self._galleries.parts(SETS[OPEN.classes]))
        for recipe, shares in _SHARES.items():
            plain = self._galleries.of_seeds(replace(OPEN, variant=recipe), self._seeds)
            by_share = {f"{recipe}, smoothed by {share}": [_smooth(rows, share) for rows in plain] for share in shares}
            table.add({recipe: plain, **by_share})
        return _TEXT.format(neighbors=_NEIGHBORS) + table.text()

    def seconds_per_item(self) -> float:
        """Return what smoothing takes an item, in one thread and without reading and writing rows."""
        (rows,) = self._galleries.of_seeds(replace(OPEN, variant="paper"), self._seeds[:1])
        began = time.perf_counter()
        _smooth(rows, 0.6)
        return (time.perf_counter() - began) / len(rows)


def _smooth(rows: Vectors, share: float) -> Vectors:
    ids = np.arange(len(rows), dtype=np.int64)
    dim = rows.shape[1]
    near = Neighbourhoods("l2", dim, build_index("l2", dim, [(ids, rows)], "flat"))
    return smoothed(rows, near.means(ids, rows, _NEIGHBORS), share, "l2", normalize=False)


def run(
    place: Path,
    folder: Annotated[Path, typer.Option(help="Where networks and features are kept.")] = Path("data/paper"),
    seeds: Annotated[int, typer.Option(min=1, max=len(SEEDS), help="How many h of each recipe.")] = len(SEEDS),
    at_once: Annotated[int, typer.Option(help="Trainings at a time, with one thread each.")] = len(
        os.sched_getaffinity(0)
    ),
) -> None:
    """Train what is missing, and print the table."""
    assert OPEN.side is not None
    train_networks(place, folder, at_once, [OPEN.old, OPEN.new, OPEN.side])
    features = Features(place, folder)
    train_transformations(features, wanted(SEEDS[:seeds]), at_once)
    galleries = SmoothedGalleries(Galleries(features), SEEDS[:seeds])
    print(galleries.table())
    print(f"Smoothing takes {1e6 * galleries.seconds_per_item():.0f} µs an item here, by a flat index of 10,000.\n")
    print(f"On commit {commit()}, {machine()}.")


if __name__ == "__main__":
    typer.run(run)
