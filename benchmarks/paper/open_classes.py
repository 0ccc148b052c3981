"""The tables that a gallery nobody has seen asks for: classes that h never learned from, classes that φ_new itself
never saw, and few pairs."""

from dataclasses import replace

import numpy as np
import torch

from benchmarks.paper.beyond import FULL_SIZE
from benchmarks.paper.classes import SETS
from benchmarks.paper.judging import RECIPES, Galleries, Table, cell
from benchmarks.paper.transformations import SEEDS, Features, Spec, Vectors, apply, choices_of, load

OPEN_RECIPES = (*RECIPES, "by class")
PAIRS = (500, 2_000, 8_000)
OPEN = Spec("old", "simclr", "new", classes="80-classes")
_UNKNOWN = Spec("first", "first-simclr", "old", classes="50-classes")
_OPEN_TEXT = (
    "φ_new knows all 100 classes; h and its class means have learned from images of classes 0 to 79 alone, the known"
    " ones. The gallery has all classes.\n\n"
)
_UNKNOWN_TEXT = (
    "The upgrade from 25 to 50 classes: neither φ_new nor h has seen an image of classes 50 to 99, the unknown ones."
    " The gallery has all classes.\n\n"
)


def wanted() -> list[Spec]:
    """Return every h that the tables need, the longest first."""
    specs = [replace(OPEN, variant=name) for name in FULL_SIZE]
    for seed in SEEDS:
        specs += [replace(spec, variant=name, seed=seed) for spec in (OPEN, _UNKNOWN) for name in OPEN_RECIPES]
        specs += [Spec("old", "simclr", "new", name, seed, pairs=count) for count in PAIRS for name in RECIPES]
    return specs


class OpenClasses:
    """The tables, of galleries of all 100 classes."""

    def __init__(self, galleries: Galleries, features: Features) -> None:
        self._galleries = galleries
        self._features = features

    def recipes(self) -> str:
        """Each recipe on queries of the 80 classes that h learned from, and of the others, which φ_new knows."""
        return _OPEN_TEXT + self._table(OPEN, OPEN_RECIPES, SEEDS)

    def full_size(self) -> str:
        """The same at the paper's size and length, one seed."""
        return self._table(OPEN, FULL_SIZE, SEEDS[:1])

    def unknown_to_new(self) -> str:
        """Each recipe on queries of the 50 classes that φ_new and h learned from, and of those that neither did."""
        return _UNKNOWN_TEXT + self._table(_UNKNOWN, OPEN_RECIPES, SEEDS)

    def _table(self, spec: Spec, recipes: tuple[str, ...], seeds: tuple[int, ...]) -> str:
        assert spec.classes is not None
        table = Table(self._galleries, spec.old, spec.new, self._galleries.parts(SETS[spec.classes]))
        table.add_recipes(spec, recipes, seeds=seeds)
        return table.text()

    def few_pairs(self) -> str:
        """The default recipe, and the linear map that it keeps, where pairs are few."""
        table = Table(self._galleries)
        for count in PAIRS:
            spec = Spec("old", "simclr", "new", pairs=count)
            default = [replace(spec, variant="default", seed=seed) for seed in SEEDS]
            shares = np.array([choices_of(self._features, each)["linear_share"] for each in default])
            table.add(
                {
                    f"{count:,} pairs, paper": self._galleries.of_seeds(spec),
                    f"{count:,} pairs, linear map alone": [self._apply_linear(each) for each in default],
                    f"{count:,} pairs, default (share of the linear map {cell(shares, 1)})": [
                        self._galleries.gallery(each) for each in default
                    ],
                }
            )
        return table.text()

    def _apply_linear(self, spec: Spec) -> Vectors:
        linear = load(self._features, spec).linear_alone()
        assert linear is not None
        old, side = (torch.from_numpy(self._galleries.vectors(name)) for name in ("old", "simclr"))
        return apply(linear, old, side).numpy()
