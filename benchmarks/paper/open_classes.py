"""The tables that a gallery nobody has seen asks for: classes that h never learned from, the item itself, few pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.paper.tables import Judged, Tables, cell
from benchmarks.paper.transformations import SEEDS, Features, Spec, Vectors, apply, choices_of, load
from models.metrics import cmc, negative_flip_rate, positive_flip_rate
from models.statistics import paired_bootstrap

CLASSES = 80  # that h learns from, of the 100 that φ_new knows
PAIRS = (500, 2_000, 8_000)
RECIPES = ("paper", "default", "by class")
FULL_SIZE = ("full size", "full size default")
_PARTS = ("all", "known", "not known")


def wanted() -> list[Spec]:
    """Return every h that the tables need, the longest first."""
    specs = [Spec("old", "simclr", "new", name, classes=CLASSES) for name in FULL_SIZE]
    specs += [Spec("old", "simclr", "new", name, seed, classes=CLASSES) for seed in SEEDS for name in RECIPES]
    for count in PAIRS:
        specs += [Spec("old", "simclr", "new", name, seed, pairs=count) for seed in SEEDS for name in RECIPES[:2]]
    return specs


@dataclass(frozen=True)
class _Gallery:
    """A gallery by each seed, judged, and how often each seed finds a query's own item first, 0 to 1."""

    judged: Judged
    own_item_first: tuple[float, ...]


class OpenClasses:
    """The tables, of galleries of all 100 classes."""

    def __init__(self, tables: Tables, features: Features) -> None:
        self._tables = tables
        self._features = features
        self._labels = features.labels("test").numpy()
        self._chosen = {
            "all": np.ones(len(self._labels), bool),
            "known": self._labels < CLASSES,
            "not known": self._labels >= CLASSES,
        }

    def recipes(self) -> str:
        """Each recipe on queries of the classes that h learned from, and of the others."""
        text, rows = self._table(RECIPES, SEEDS)
        return text + "\n" + self._against_paper(rows)

    def full_size(self) -> str:
        """The same at the paper's size and length, one seed."""
        return self._table(FULL_SIZE, SEEDS[:1])[0]

    def _table(self, recipes: Sequence[str], seeds: Sequence[int]) -> tuple[str, dict[str, _Gallery]]:
        rows = {"old/old": self._direct("old")}
        rows |= {f"new/h, {name}": self._by_h(name, seeds, classes=CLASSES) for name in recipes}
        rows["new/new"] = self._direct("new")
        text = "| query/gallery | queries | CMC@1 | CMC@5 | mAP | G CMC@1 | G CMC@5 | G mAP | negative flips"
        text += " | positive flips |\n" + "|---" * 10 + "|\n"
        text += "".join(self._row(name, part, rows) for part in _PARTS for name in rows)
        text += "\n| query/gallery | own item first |\n|---|---|\n"
        text += "".join(f"| {name} | {cell(100 * np.array(row.own_item_first))} |\n" for name, row in rows.items())
        return text, rows

    def _row(self, name: str, part: str, rows: dict[str, _Gallery]) -> str:
        chosen = self._chosen[part]
        values, low, high = (rows[which].judged.of(chosen).values() for which in (name, "old/old", "new/new"))
        closed = 100 * (values - low) / (high - low)
        before = rows["old/old"].judged.of(chosen).hits() > 0
        after = [metrics.first_match_ranks < 1 for metrics in rows[name].judged.of(chosen).seeds]
        lost, gained = (
            100 * np.mean([rate(before, hit) for hit in after]) for rate in (negative_flip_rate, positive_flip_rate)
        )
        cells = [cell(values[:, column]) for column in range(3)] + [cell(closed[:, column], 1) for column in range(3)]
        return f"| {name} | {part} | {' | '.join(cells)} | {lost:.1f} | {gained:.1f} |\n"

    def _against_paper(self, rows: dict[str, _Gallery]) -> str:
        """Paired differences from the paper's recipe, with 95 % intervals over queries drawn by whole classes."""
        text = "| against the paper's recipe | queries | CMC@1 | CMC@5 | mAP |\n|---|---|---|---|---|\n"
        for recipe in RECIPES[1:]:
            for part in _PARTS:
                chosen = self._chosen[part]
                pair = [rows[f"new/h, {name}"].judged.of(chosen).scores() for name in ("paper", recipe)]
                cells = []
                for before, after in zip(*pair, strict=True):
                    found = paired_bootstrap(before, after, resamples=2_000, clusters=self._labels[chosen])
                    cells.append(f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})")
                text += f"| {recipe} | {part} | {' | '.join(cells)} |\n"
        return text

    def few_pairs(self) -> str:
        """The default recipe, and the linear map that it keeps, where pairs are few."""
        text = "| pairs | h | share of the linear map | CMC@1 | CMC@5 | mAP | own item first |\n" + "|---" * 7 + "|\n"
        for count in PAIRS:
            specs = [Spec("old", "simclr", "new", "default", seed, pairs=count) for seed in SEEDS]
            shares = [choices_of(self._features.folder, spec)["linear_share"] for spec in specs]
            linear = [self._apply_linear(spec) for spec in specs]
            ways = {
                "paper's recipe": (self._by_h("paper", pairs=count), ""),
                "linear map alone": (self._judged(linear), ""),
                "default recipe": (self._by_h("default", pairs=count), cell(np.array(shares), 1)),
            }
            for name, (found, share) in ways.items():
                values = found.judged.values()
                cells = [cell(values[:, column]) for column in range(3)] + [cell(100 * np.array(found.own_item_first))]
                text += f"| {count:,} | {name} | {share} | {' | '.join(cells)} |\n"
        return text

    def _by_h(
        self, variant: str, seeds: Sequence[int] = SEEDS, classes: int | None = None, pairs: int | None = None
    ) -> _Gallery:
        specs = [Spec("old", "simclr", "new", variant, seed, classes=classes, pairs=pairs) for seed in seeds]
        return self._judged([self._tables.gallery(spec) for spec in specs])

    def _apply_linear(self, spec: Spec) -> Vectors:
        linear = load(self._features.folder, spec).linear_alone()
        assert linear is not None
        return apply(linear, *(torch.from_numpy(self._features.test(name)) for name in ("old", "simclr"))).numpy()

    def _judged(self, galleries: list[Vectors]) -> _Gallery:
        query = self._features.test("new")
        return _Gallery(
            Judged(tuple(self._tables.judge(query, gallery) for gallery in galleries)),
            tuple(_own_item_first(query, gallery) for gallery in galleries),
        )

    def _direct(self, name: str) -> _Gallery:
        vectors = self._features.test(name)
        return _Gallery(self._tables.direct(name, name), (_own_item_first(vectors, vectors),))


def _own_item_first(query: Vectors, gallery: Vectors) -> float:
    numbers = np.arange(len(query))
    return cmc(query, numbers, gallery, numbers, ks=(1,))[1]
