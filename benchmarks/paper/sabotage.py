"""Whether judging an upgrade tells a good h from bad ones, each judged as a worker judges an upgrade.

    python -m benchmarks.paper.sabotage ../shared/data/cifar100 --folder data/paper

The gallery are CIFAR-100's 10,000 test images, of which some are given again as references. Each way of going wrong
leaves a gallery that is complete and finite, and that h/h or a look at the space would let pass.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.paper.networks import train_networks
from benchmarks.paper.transformations import Features, Spec, Vectors, apply, linear_map, load, train_transformations
from models.judging.evidence import Evidence, Galleries, Queries, References
from models.judging.intervals import Interval
from models.judging.report import Measurements
from workers.judging import Judging, Known, Report, judge

_HONEST = Spec("old", "simclr", "new", "default")
_PAPER = Spec("old", "simclr", "new")
_HURRIED = Spec("old", "simclr", "new", "one epoch")
_ASTRAY = Spec("old", "simclr", "alternate")
SPECS = (_HONEST, _PAPER, _HURRIED, _ASTRAY)


def ways(features: Features) -> Iterator[tuple[str, Vectors]]:
    """Give what each h makes of the test images, (N, D): the good ones first."""
    old, side = (torch.from_numpy(features.test(name)) for name in ("old", "simclr"))
    generator = np.random.default_rng(0)
    honest = apply(load(features, _HONEST), old, side).numpy()
    dim = honest.shape[1]
    yield "default recipe", honest
    yield "paper's recipe", apply(load(features, _PAPER), old, side).numpy()
    yield "closed-form linear map alone", apply(linear_map(features, _HONEST), old, side).numpy()
    yield "one epoch", apply(load(features, _HURRIED), old, side).numpy()
    shuffled = side[torch.from_numpy(generator.permutation(len(side)))]
    yield "ψ of other items", apply(load(features, _HONEST), old, shuffled).numpy()
    yield "half of the outputs zero", honest * (np.arange(dim) % 2).astype(np.float32)
    yield "to another model's space", apply(load(features, _ASTRAY), old, side).numpy()
    turn = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
    yield "turned into a wrong space", (honest @ turn).astype(np.float32)


def judged(features: Features, transformed: Vectors, references: int, seed: int = 0) -> Report:
    """Judge a gallery that is what an h made of the test images; with no references, there is no evidence."""
    old, new = features.test("old"), features.test("new")
    labels = features.labels("test").numpy()
    ids = np.arange(len(old), dtype=np.int64)
    galleries = Galleries("l2", [(ids, old)], [(ids, transformed)], item_ids=ids, labels=labels)
    evidence = Evidence(galleries)
    if references:
        given = np.sort(np.random.default_rng(seed).permutation(len(ids))[:references])
        side = torch.from_numpy(features.test("simclr"))
        linear = apply(linear_map(features, _HONEST), torch.from_numpy(old), side).numpy()
        queries = Queries(old[given], new[given], ids[given], "references", labels[given])
        evidence = Evidence(
            Galleries("l2", [(ids, old)], [(ids, transformed)], [(ids, linear)], ids, labels),
            References(queries, transformed[given], linear[given]),
        )
    return judge(evidence, Judging(Known(len(ids), 0, 0, None, 0, ""), "instance"))


def run(
    place: Path,
    folder: Annotated[Path, typer.Option(help="Where networks and features are kept.")] = Path("data/paper"),
    references: Annotated[int, typer.Option(help="How many images are given again.")] = 5_000,
) -> None:
    """Print the table."""
    cores = len(os.sched_getaffinity(0))
    train_networks(place, folder, cores)
    features = Features(place, folder)
    train_transformations(features, SPECS, cores)
    print(table(features, references))


def table(features: Features, references: int) -> str:
    """Return a row for each way: the verdict, what decides it with its intervals, and h/h, which does not."""
    text = (
        "| h | verdict | CMC@1, new/h less old/old | overlap@10 less the linear map's | own item first less the linear"
    )
    text += " map's | h/h |\n" + "|---" * 6 + "|\n"
    for name, transformed in ways(features):
        report = judged(features, transformed, references)
        text += f"| {name} | {report.verdict} | {' | '.join(_cells(report.measurements))} |\n"
    nothing = judged(features, next(ways(features))[1], references=0)
    return text + f"| default recipe, without references | {nothing.verdict} | | | | |\n"


def _cells(found: Measurements) -> list[str]:
    assert found.served is not None
    assert found.references is not None
    assert found.references.labelled is not None
    assert found.own_items is not None
    intervals = (found.served.cmc1.difference, found.references.overlap_above_linear, found.own_items.above_linear)
    return [*map(_cell, intervals), f"{100 * found.references.labelled.h_h.cmc1:.1f}"]


def _cell(interval: Interval | None) -> str:
    assert interval is not None
    return f"{100 * interval.value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


if __name__ == "__main__":
    typer.run(run)
