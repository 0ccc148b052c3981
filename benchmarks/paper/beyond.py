"""Other recipes than the paper's on the same frozen networks, and both recipes at the paper's size and length."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.paper.judging import RECIPES, Galleries, Table
from benchmarks.paper.transformations import SEEDS, Features, Spec, Vectors, apply, linear_map

FULL_SIZE = ("full size", "full size default")
_OTHERS = ("one view", "contrastive", "class-mean entropy", "averaged weights", "distilled ensemble", "linear skip")
_INT8 = ("int8 side", "int8 side default")
_DISAGREEMENT = 2.0


def wanted() -> list[Spec]:
    """Return every h that the tables need and the paper's tables do not."""
    specs = [Spec("old", "simclr", "new", name) for name in FULL_SIZE]
    for seed in SEEDS:
        specs += [Spec("old", "simclr", "new", name, seed) for name in _OTHERS]
        specs += [Spec("old", "simclr+alternate", "new", name, seed) for name in _INT8]
    return specs


class Beyond:
    """The tables, of galleries of all classes."""

    def __init__(self, galleries: Galleries, features: Features) -> None:
        self._galleries = galleries
        self._features = features

    def ways(self) -> str:
        """The paper's recipe against others."""
        table = Table(self._galleries)
        table.add(dict(self._ways()))
        name = "new/h, mean of three h, disagreement as a coordinate"
        table.rows[name] = self._galleries.judged([self._with_disagreement(self._by_h("paper"))])
        first = f"new/h, {RECIPES[0]}"
        table.compared[f"{name}, against {first}"] = (table.rows[first], table.rows[name])
        return table.text()

    def full_size(self) -> str:
        """Both recipes at the paper's size and length, one seed."""
        table = Table(self._galleries)
        table.add_recipes(Spec("old", "simclr", "new"), FULL_SIZE, seeds=SEEDS[:1])
        return table.text()

    def _by_h(self, variant: str, side: str | None = "simclr") -> list[Vectors]:
        return self._galleries.of_seeds(Spec("old", side, "new", variant))

    def _ways(self) -> Iterator[tuple[str, Sequence[Vectors]]]:
        paper, default = self._by_h("paper"), self._by_h("default")
        yield "paper", paper
        yield "one view of each image", self._by_h("one view")
        yield "linear, in closed form", [self._linear()]
        yield "a linear skip, in closed form, and h beside it", self._by_h("linear skip")
        yield "output projected to be >= 0", [np.maximum(gallery, 0) for gallery in paper]
        yield "+ 0.3 supervised contrastive", self._by_h("contrastive")
        yield "+ 0.3 entropy over class means", self._by_h("class-mean entropy")
        yield "mean of three h", [np.mean(paper, axis=0)]
        yield "mean of three h, distilled into one", self._by_h("distilled ensemble")
        yield "weights averaged over the last epochs", self._by_h("averaged weights")
        yield "two kinds of ψ in int8", self._by_h("int8 side", "simclr+alternate")
        yield "default", default
        yield "default, mean of three h", [np.mean(default, axis=0)]
        yield "default, two kinds of ψ in int8", self._by_h("int8 side default", "simclr+alternate")
        yield "paper without ψ", self._by_h("paper", None)
        yield "default without ψ", self._by_h("default", None)

    def _linear(self) -> Vectors:
        old, side = (torch.from_numpy(self._galleries.vectors(name)) for name in ("old", "simclr"))
        return apply(linear_map(self._features, Spec("old", "simclr", "new")), old, side).numpy()

    def _with_disagreement(self, galleries: Sequence[Vectors]) -> tuple[Vectors, Vectors]:
        """Members of an ensemble disagree where the target is uncertain: one more coordinate, 0 in queries, puts such
        items farther away. Return the queries and the gallery."""
        mean = np.mean(galleries, axis=0)
        spread = np.sqrt(np.mean((np.stack(galleries) - mean) ** 2, axis=0).sum(axis=1, keepdims=True))
        query = self._galleries.vectors("new")
        far = np.concatenate([mean, _DISAGREEMENT * spread], axis=1)
        return np.concatenate([query, np.zeros_like(spread)], axis=1), far
