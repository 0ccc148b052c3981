"""The paper's tables (Ramanujan et al., CVPR 2022) on CIFAR-100, and what beats its recipe; writes docs/results.md.

    python -m benchmarks.paper ../shared/data/cifar100

The folder has train.parquet and test.parquet, each with columns `image` and `label`. Everything that takes long
(networks, features, h) is kept in `--folder` and not made again; an interrupted run goes on. With `--only`, the other
sections stay as the page has them.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.paper import beyond, open_classes, set_ups, tables
from benchmarks.paper.backfilling import Backfilling
from benchmarks.paper.beyond import Beyond
from benchmarks.paper.costs import costs
from benchmarks.paper.instances import Instances
from benchmarks.paper.judging import Galleries
from benchmarks.paper.networks import train_networks
from benchmarks.paper.open_classes import OpenClasses
from benchmarks.paper.set_ups import OtherSetUps
from benchmarks.paper.smoothing import SmoothedGalleries
from benchmarks.paper.tables import Tables
from benchmarks.paper.transformations import SEEDS, VIEWS, Features, Spec, expected_errors, train_transformations
from benchmarks.paper.uncertainty import Uncertainty
from benchmarks.setting import commit, machine

_INTRODUCTION = """# Results

The tables of the paper (Ramanujan et al., CVPR 2022) on CIFAR-100's photographs, with networks that a CPU trains in
minutes, and our default recipe beside the paper's. `make paper` makes all of it again and writes this page.

Queries and gallery are the 10,000 test images, each query without itself; L2 on raw embeddings; CMC and mAP@1.0 in
percent as the paper's code defines them. The old model knows the first 50 classes by index, the new one all 100. G is
the share of the gap from old/old to new/new that is closed. ± is the standard deviation over {seeds} seeds of h. φ is a
SmallResNet (width 32, one block a stage, a stem that halves the size), 128-d unless said otherwise, 12 epochs; ψ is
SimCLR of the same shape on the old classes, 15 epochs. h and g learn from {views} cached views of the 50,000 training
images, inner dimension 512, 16 epochs, so that three seeds of everything fit a CPU; one h of the paper's own size and
length is below.

- **Paper's recipe**: mean squared error, and nothing else.
- **Default recipe**: the mean of four such networks, each by the same loss, and beside it the share of a linear map in
  closed form that is best on a tenth of the images, which nothing learned from; then the output is projected onto the
  target's support. At the paper's size and length: two networks of inner dimension 1,024. It uses no label.
  Here it does four times the arithmetic of the paper's recipe, at the paper's size two thirds.
- **By class**: the default, and then drawn towards the class means of φ_new, as far as that lowers nothing for a fifth
  of the classes, which had no mean and were not learned from when that was chosen. It needs labels of D_new.

Every table has old/old, new/h and h/h by each recipe, and new/new. *Own item first* is how often a query's own image,
which the gallery then keeps, is the nearest. *Negative flips* are queries whose nearest item has their label with
old/old and not here, *positive* ones the reverse, in percent of the queries: those of new/new no h can avoid.
Differences are paired over the queries, each by its mean over the seeds, with 95 % intervals over queries that are
drawn by whole classes. Each section ends with the commit and the machine that it was made on; those of older commits
have fewer rows and columns.

"""
_SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)+)", re.MULTILINE)


def wanted() -> list[Spec]:
    """Return every h and g of the page, once each."""
    modules = (beyond, open_classes, set_ups, tables)
    return list(dict.fromkeys(spec for module in modules for spec in module.wanted()))


def sections(features: Features) -> dict[str, Callable[[], str]]:
    """Return the page's sections by their titles, each made when it is called."""
    galleries, others, instances = Galleries(features), OtherSetUps(features), Instances(features)
    of_paper, opened = Tables(galleries, features), OpenClasses(galleries, features)
    ways, uncertainty = Beyond(galleries, features), Uncertainty(galleries, features)
    backfilling = Backfilling(galleries, features.folder, partial(expected_errors, features))
    return {
        "Table 1: an upgrade from 50 to 100 classes": of_paper.table_1,
        "Table 2: ψ of another domain": others.other_domain,
        "Table 4: another architecture, another dimension": of_paper.table_4,
        "Table 5: a sequence of upgrades, 25 to 50 to 100 classes": of_paper.table_5,
        "Table 6: kinds of side-information": of_paper.table_6,
        "Disjoint training sets": others.disjoint,
        "Classes that h has not learned from": opened.recipes,
        "The same at the paper's size and length, one seed": opened.full_size,
        "Smoothing within the gallery": SmoothedGalleries(galleries).table,
        "Classes that the new model does not know": opened.unknown_to_new,
        "The item itself, by a second view": instances.small,
        "The error that h expects, per item": uncertainty.tables,
        "Few pairs": opened.few_pairs,
        "ArcFace, compared by angle": of_paper.arcface,
        "Backfilling": backfilling.curves,
        "ResNet-18 at 128 pixels": others.large,
        "ResNet-18 at 128 pixels: the item itself, by a second view": instances.large,
        "Beyond the paper's recipe": ways.ways,
        "At the paper's size and length (inner dimension 2,048, 80 epochs, one seed)": ways.full_size,
        "Costs": partial(costs, features, wanted()),
    }


def run(
    place: Path,
    folder: Annotated[Path, typer.Option(help="Where networks and features are kept.")] = Path("data/paper"),
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("docs/results.md"),
    only: Annotated[list[str] | None, typer.Option(help="Make sections whose titles begin so.")] = None,
    at_once: Annotated[int, typer.Option(help="Trainings at a time, with one thread each.")] = len(
        os.sched_getaffinity(0)
    ),
) -> None:
    """Train what is missing, judge it, and write the page."""
    features = Features(place, folder)
    if not only:  # otherwise what is missing is trained when it is asked for
        train_networks(place, folder, at_once)
        train_transformations(features, wanted(), at_once)

    found = dict(_SECTION.findall(output.read_text())) if only else {}
    for title, section in sections(features).items():
        if not only or title.startswith(tuple(only)):
            found[title] = f"{section().rstrip()}\n\nMade on commit {commit()}, {machine()}."
            print(title, flush=True)
    ordered = [f"## {title}\n\n{found[title].strip()}\n" for title in sections(features) if title in found]
    output.write_text(_INTRODUCTION.format(seeds=len(SEEDS), views=VIEWS) + "\n".join(ordered))


if __name__ == "__main__":
    typer.run(run)
