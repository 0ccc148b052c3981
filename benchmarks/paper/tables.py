"""The paper's tables, each an upgrade or several in the form of `judging.Table`."""

from collections.abc import Sequence

from benchmarks.paper.judging import RECIPES, Galleries, Table, cell, head, line
from benchmarks.paper.networks import NETWORKS
from benchmarks.paper.transformations import SEEDS, Features, Spec, Vectors
from models.metrics import linear_cka

_SIDES = (None, "autoencoder", "alternate", "alternate-mixup", "simclr")
_OTHERS = {"old-conv": "ConvEncoder, 128-d", "old-64": "SmallResNet, 64-d"}
_THROUGH = ("first", "first-simclr")


def wanted() -> list[Spec]:
    """Return every h and g that the tables need."""
    pairs = [("old", side, "new") for side in _SIDES]
    pairs += [(old, "simclr", "new") for old in _OTHERS]
    pairs += [("old-arcface", "simclr", "new-arcface")]
    pairs += [("first", "first-simclr", new) for new in ("old", "simclr", "new")]
    specs = []
    for seed in SEEDS:
        specs += [Spec(old, side, new, recipe, seed) for recipe in RECIPES for old, side, new in pairs]
        specs += [Spec("old", "simclr", "new", recipe, seed, _THROUGH) for recipe in RECIPES]
        specs += [Spec("first", None, new, "paper", seed) for new in ("old", "new")]
    return specs


class Tables:
    """The tables, of galleries of all classes."""

    def __init__(self, galleries: Galleries, features: Features) -> None:
        self._galleries = galleries
        self._features = features

    def table_1(self) -> str:
        table, direct = Table(self._galleries), self._galleries.direct
        table.rows |= {
            "new/old, trained independently": direct("new", "old"),
            "bct/old, backward-compatible training": direct("new-bct", "old"),
            "bct/bct": direct("new-bct", "new-bct"),
        }
        table.add_recipes(Spec("old", "simclr", "new"))
        return table.text()

    def table_4(self) -> str:
        text = ""
        for old, what in _OTHERS.items():
            table = Table(self._galleries, old)
            table.add_recipes(Spec(old, "simclr", "new"))
            text += f"{what}:\n\n{table.text()}\n"
        return text.rstrip("\n") + "\n"

    def table_5(self) -> str:
        text = head("classes that an encoder knows", "CMC@1", "CMC@5", "mAP")
        for name in ("first", "old", "new"):
            values = self._galleries.direct(name, name).values()
            text += line(str(len(NETWORKS[name].classes)), *(cell(column) for column in values.T))
        text += "\n25 -> 50, the first hop:\n\n" + self._one_hop("first", "first-simclr", "old")
        text += "\n50 -> 100, the second:\n\n" + self._one_hop("old", "simclr", "new")
        text += "\n25 -> 100, directly and in two hops:\n\n" + self._two_hops()
        return text

    def _one_hop(self, old: str, side: str, new: str) -> str:
        table = Table(self._galleries, old, new)
        table.add_recipes(Spec(old, side, new), what="with ψ, ")
        table.add_recipes(Spec(old, None, new), RECIPES[:1], what="without ψ, ")
        return table.text()

    def _two_hops(self) -> str:
        table = Table(self._galleries, "first", "new")
        for recipe in RECIPES:
            table.add(
                {
                    f"direct, with ψ, {recipe}": self._galleries.of_seeds(Spec(*_THROUGH, "new", recipe)),
                    f"two hops, with ψ, {recipe}": self._chains(True, recipe, None),
                    f"two hops, with ψ, {recipe}, second h trained on what the first gives": self._chains(
                        True, recipe, _THROUGH
                    ),
                }
            )
        table.add(
            {
                "direct, without ψ, paper": self._galleries.of_seeds(Spec("first", None, "new")),
                "two hops, without ψ, paper": self._chains(False, "paper", None),
            }
        )
        return table.text()

    def _chains(self, with_side: bool, recipe: str, through: tuple[str, str] | None) -> Sequence[Vectors]:
        """Return the embeddings by two h, one after the other, of each seed."""
        side = "first-simclr" if with_side else None
        found = []
        for seed in SEEDS:
            old = self._galleries.gallery(Spec("first", side, "old", recipe, seed))
            new_side = self._galleries.gallery(Spec("first", side, "simclr", recipe, seed)) if with_side else None
            second = Spec("old", "simclr" if with_side else None, "new", recipe, seed, through)
            found.append(self._galleries.transformed(second, old, new_side))
        return found

    def table_6(self) -> str:
        """CKA is that of ψ's network with φ_old, on the test images."""
        table = Table(self._galleries)
        for side in _SIDES:
            what = "none"
            if side is not None:
                alike = linear_cka(self._features.test("old"), self._features.test(side))
                what = f"{side} (CKA {alike:.2f})"
            table.add_recipes(Spec("old", side, "new"), what=f"{what}, ")
        return table.text()

    def arcface(self) -> str:
        table = Table(self._galleries, "old-arcface", "new-arcface")
        table.add_recipes(Spec("old-arcface", "simclr", "new-arcface"))
        return table.text()
