"""Upgrades of other kinds: ψ of another domain, disjoint D_old and D_new, and larger images in a larger network."""

from dataclasses import replace

from benchmarks.paper.classes import ALL, ANIMALS, SETS, THINGS
from benchmarks.paper.judging import RECIPES, Galleries, Table
from benchmarks.paper.transformations import SEEDS, Features, Spec

LARGE_RECIPES = ("longer", "longer default")
LARGE = Spec("large-old", "large-simclr", "large-new", classes="16-few-classes")
_THINGS = Spec("things-old", "animals-simclr", "things-new", classes="things")
_THINGS_SIDES = {"ψ of animals": "animals-simclr", "ψ of D_old": "things-simclr", "without ψ": None}
_DISJOINT = Spec("first", "first-simclr", "disjoint-new", classes="25-to-79")


def wanted() -> list[Spec]:
    """Return every h that the tables need."""
    specs = [replace(_THINGS, side=side) for side in _THINGS_SIDES.values()]
    specs += [_DISJOINT, replace(_DISJOINT, side=None)]
    made = [replace(spec, variant=name, seed=seed) for seed in SEEDS for spec in specs for name in RECIPES]
    large = [LARGE, replace(LARGE, side=None)]
    return made + [replace(spec, variant=name, seed=seed) for seed in SEEDS for spec in large for name in LARGE_RECIPES]


class OtherSetUps:
    """The tables, each with galleries of its own."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def other_domain(self) -> str:
        """The paper's table 2, whose ψ is of ImageNet and whose galleries are of Places."""
        text = (
            "ψ has learned from animals and people (50 classes) alone. φ_old knows the first 25 of the 50 classes of"
            " things, plants and scenes, φ_new and h know all 50.\n"
        )
        kinds = {
            "A gallery of things": THINGS,
            "A gallery of animals and people, which no φ and no h has seen, but ψ": ANIMALS,
        }
        for what, classes in kinds.items():
            table = Table(Galleries(self._features, classes), "things-old", "things-new")
            for of, side in _THINGS_SIDES.items():
                table.add_recipes(replace(_THINGS, side=side), what=f"{of}, ")
            text += f"\n{what}:\n\n{table.text()}"
        return text

    def disjoint(self) -> str:
        """The paper's section 4.3."""
        text = "φ_old and ψ know classes 0 to 24, φ_new and h know classes 25 to 79.\n"
        kinds = {
            "A gallery of classes 80 to 99, which none of them has seen": ALL[80:],
            "A gallery of classes 25 to 79": SETS["25-to-79"],
        }
        for what, classes in kinds.items():
            table = Table(Galleries(self._features, classes), "first", "disjoint-new")
            table.add_recipes(_DISJOINT, what="with ψ, ")
            table.add_recipes(replace(_DISJOINT, side=None), what="without ψ, ")
            text += f"\n{what}:\n\n{table.text()}"
        return text

    def large(self) -> str:
        """A ResNet-18 at 128 pixels."""
        galleries = Galleries(self._features, like="large-new")
        known = SETS["16-few-classes"]
        text = (
            "Small in everything but the images: CIFAR's photographs enlarged from 32 to 128 pixels, which adds no"
            " detail, 20 classes (every fifth) of 200 images each to learn from and 100 each as queries and gallery,"
            " ResNet-18 with a last block of 128 channels, 10 epochs (ψ 8). φ_old and ψ know 10 classes, φ_new all 20;"
            f" h learns from {len(known)} of them by 80 epochs of inner dimension 512. So the figures say whether an"
            " upgrade works with a network of this shape, and not how well one does that was trained in full.\n\n"
        )
        table = Table(galleries, "large-old", "large-new", galleries.parts(known))
        table.add_recipes(LARGE, LARGE_RECIPES, what="with ψ, ")
        table.add_recipes(replace(LARGE, side=None), LARGE_RECIPES, what="without ψ, ")
        return text + table.text()
