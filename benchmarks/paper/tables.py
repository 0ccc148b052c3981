"""The tables: which rows, judged how. All take the test images as queries and as gallery, each query without its own
image, by L2 (as the paper's code does)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.paper.networks import NETWORKS, read, record, trained
from benchmarks.paper.transformations import (
    SEEDS,
    VARIANTS,
    Features,
    Spec,
    Vectors,
    apply,
    as_levels,
    linear_map,
    load,
    seconds_of,
)
from models.metrics import RetrievalPerQuery, linear_cka, negative_flip_rate, positive_flip_rate, query_metrics
from models.normalize import l2_normalize
from models.statistics import paired_bootstrap
from models.training.fitting import embed_images

_FIRST_UNKNOWN = 50  # of "old"'s classes
_HEAD = "| query/gallery | CMC@1 | CMC@5 | mAP | G CMC@1 | G CMC@5 | G mAP |\n|---|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Judged:
    """One gallery's results, a seed of h each."""

    seeds: tuple[RetrievalPerQuery, ...]

    def values(self) -> NDArray[np.float64]:
        """Return (seeds, 3): CMC@1, CMC@5 and mAP in percent."""
        return np.array([_percent(metrics) for metrics in self.seeds])

    def of(self, chosen: NDArray[np.bool_]) -> "Judged":
        """Return the results of some of the queries, (Q,)."""
        return Judged(tuple(_of(metrics, chosen) for metrics in self.seeds))

    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return each query's hits at 1 and at 5 and its average precision, (Q,) means over the seeds."""
        at_5: NDArray[np.float64] = np.mean([metrics.first_match_ranks < 5 for metrics in self.seeds], axis=0)
        return self.hits(), at_5, self.average_precisions()

    def hits(self) -> NDArray[np.float64]:
        """Return (Q,) how often each query's nearest item has its label."""
        hits: NDArray[np.float64] = np.mean([metrics.first_match_ranks < 1 for metrics in self.seeds], axis=0)
        return hits

    def average_precisions(self) -> NDArray[np.float64]:
        """Return (Q,) means over the seeds."""
        means: NDArray[np.float64] = np.mean([metrics.average_precisions for metrics in self.seeds], axis=0)
        return means


def _percent(metrics: RetrievalPerQuery) -> tuple[float, float, float]:
    ranks = metrics.first_match_ranks
    hits = [100 * float((ranks < k).mean()) for k in (1, 5)]
    return hits[0], hits[1], 100 * float(np.nanmean(metrics.average_precisions))


class Tables:
    """Galleries and their results, each computed once."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._folder = features.folder
        self._labels = features.labels("test").numpy()
        self.direct = lru_cache(maxsize=None)(self._direct)
        self.by_h = lru_cache(maxsize=None)(self._by_h)

    def judge(self, query: Vectors, gallery: Vectors) -> RetrievalPerQuery:
        """Judge test images as queries and gallery."""
        return query_metrics(query, self._labels, gallery, self._labels, self_match=True)

    def _direct(self, query: str, gallery: str) -> Judged:
        """Judge encoders as they are."""
        return Judged((self.judge(self._features.test(query), self._features.test(gallery)),))

    def gallery(self, spec: Spec) -> Vectors:
        """Return the test images' embeddings by h: (N, D)."""
        old = torch.from_numpy(self._features.test(spec.old))
        side = None if spec.side is None else torch.from_numpy(self._features.test(spec.side))
        variant = VARIANTS[spec.variant]
        if side is not None and variant.side_levels is not None:
            side = as_levels(side, variant.side_levels)
        output = apply(load(self._folder, spec), old, side)
        if variant.target == "residual":
            output = output + linear_map(self._features, spec)(old, side)
        gallery = output.numpy()
        return l2_normalize(gallery) if "arcface" in spec.new else gallery  # as what it stands in for

    def _by_h(self, old: str, side: str | None, new: str, variant: str, symmetric: bool = False) -> Judged:
        """Judge new/h, or h/h."""
        galleries = [self.gallery(Spec(old, side, new, variant, seed)) for seed in SEEDS]
        return Judged(
            tuple(self.judge(gallery if symmetric else self._features.test(new), gallery) for gallery in galleries)
        )

    def row(self, name: str, judged: Judged, old: str = "old", new: str = "new") -> str:
        """Return a line with the share of the gap from old/old to new/new that is closed."""
        values = judged.values()
        low, high = (self.direct(which, which).values()[0] for which in (old, new))
        closed = 100 * (values - low) / (high - low)
        cells = [cell(values[:, column]) for column in range(3)] + [cell(closed[:, column], 1) for column in range(3)]
        return f"| {name} | {' | '.join(cells)} |\n"

    def table_1(self) -> str:
        rows = [
            self.row("old/old", self.direct("old", "old")),
            self.row("new/old, trained independently", self.direct("new", "old")),
            self.row("bct/old, backward-compatible training", self.direct("new-bct", "old")),
            self.row("bct/bct", self.direct("new-bct", "new-bct")),
        ]
        for variant in ("paper", "default"):
            rows.append(self.row(f"h/h, {variant} recipe", self.by_h("old", "simclr", "new", variant, True)))
            rows.append(self.row(f"new/h, {variant} recipe", self.by_h("old", "simclr", "new", variant)))
        return _HEAD + "".join([*rows, self.row("new/new", self.direct("new", "new"))])

    def table_4(self) -> str:
        rows = []
        for old, what in (("old-conv", "ConvEncoder, 128-d"), ("old-64", "SmallResNet, 64-d")):
            rows.append(self.row(f"{what}: old/old", self.direct(old, old), old))
            for variant in ("paper", "default"):
                judged = self.by_h(old, "simclr", "new", variant)
                rows.append(self.row(f"{what}: new/h, {variant} recipe", judged, old))
        return _HEAD + "".join([*rows, self.row("new/new", self.direct("new", "new"))])

    def table_5(self) -> str:
        rows = [
            self.row(f"{name}/{name}, {NETWORKS[name].classes} classes", self.direct(name, name), "first", "new")
            for name in ("first", "old", "new")
        ]
        for side, with_side in ((True, "with ψ"), (False, "without ψ")):
            for variant in ("paper", "default") if side else ("paper",):
                what = f"{with_side}, {variant} recipe"
                ψ = "first-simclr" if side else None
                hop = self.by_h("first", ψ, "old", variant)
                rows.append(self.row(f"25 -> 50, {what} (G of this hop)", hop, "first", "old"))
                hop = self.by_h("old", "simclr" if side else None, "new", variant)
                rows.append(self.row(f"50 -> 100, {what} (G of this hop)", hop, "old", "new"))
                if side:
                    name = f"50 -> 100, {what}, h also trained on what the hop before gives (G of this hop)"
                    rows.append(self.row(name, self._second_hop(variant), "old", "new"))
                rows.append(self.row(f"two hops, {what}", self._two_hops(side, variant, False), "first", "new"))
                if side:
                    name = f"two hops, {what}, second h also trained on what the first gives"
                    rows.append(self.row(name, self._two_hops(side, variant, True), "first", "new"))
                rows.append(self.row(f"direct, {what}", self.by_h("first", ψ, "new", variant), "first", "new"))
        return _HEAD + "".join(rows)

    def _second_hop(self, variant: str) -> Judged:
        """Judge the h that also learned from a chain on what the encoders give."""
        galleries = [self.gallery(Spec("old", "simclr", "new", variant, seed, _THROUGH)) for seed in SEEDS]
        return Judged(tuple(self.judge(self._features.test("new"), gallery) for gallery in galleries))

    def _two_hops(self, with_side: bool, variant: str, through: bool) -> Judged:
        return Judged(tuple(self._one_chain(with_side, variant, through, seed) for seed in SEEDS))

    def _one_chain(self, with_side: bool, variant: str, through: bool, seed: int) -> RetrievalPerQuery:
        side = "first-simclr" if with_side else None
        old = torch.from_numpy(self.gallery(Spec("first", side, "old", variant, seed)))
        new_side = None
        if with_side:
            new_side = torch.from_numpy(self.gallery(Spec("first", side, "simclr", variant, seed)))
        second = Spec("old", "simclr" if with_side else None, "new", variant, seed, _THROUGH if through else None)
        return self.judge(self._features.test("new"), apply(load(self._folder, second), old, new_side).numpy())

    def table_6(self) -> str:
        head = _HEAD.replace("| query/gallery |", "| side-information, recipe | CKA |").replace("|---|", "|---|---|", 1)
        rows = []
        for side in (None, "autoencoder", "alternate", "alternate-mixup", "simclr"):
            cka = "" if side is None else f"{linear_cka(self._features.test('old'), self._features.test(side)):.2f}"
            for variant in ("paper", "default"):
                line = self.row(f"{side or 'none'}, {variant}", self.by_h("old", side, "new", variant))
                first, rest = line.removeprefix("| ").split(" | ", 1)
                rows.append(f"| {first} | {cka} | {rest}")
        return head + "".join(rows)

    def arcface(self) -> str:
        old, new = "old-arcface", "new-arcface"
        rows = [self.row("old/old", self.direct(old, old), old, new)]
        for variant in ("paper", "default"):
            judged = self.by_h(old, "simclr", new, variant)
            rows.append(self.row(f"new/h, {variant} recipe", judged, old, new))
        return _HEAD + "".join([*rows, self.row("new/new", self.direct(new, new), old, new)])

    def beyond(self) -> str:
        """The paper's recipe against others on the same frozen networks, paired over queries."""
        head = (
            "| way | CMC@1 | CMC@5 | mAP | G CMC@1 | G CMC@5 | G mAP | CMC@1 against the paper's | mAP against the"
            " paper's | negative flips | positive flips |\n" + "|---" * 11 + "|\n"
        )
        paper = self.by_h("old", "simclr", "new", "paper")
        before = self.direct("old", "old").hits() > 0
        rows = []
        for name, judged in self._ways():
            line = self.row(name, judged).rstrip("\n")
            hits = _interval(paper.hits(), judged.hits())
            precisions = _interval(paper.average_precisions(), judged.average_precisions())
            after = [metrics.first_match_ranks < 1 for metrics in judged.seeds]
            lost, gained = (
                100 * np.mean([rate(before, hit) for hit in after]) for rate in (negative_flip_rate, positive_flip_rate)
            )
            rows.append(f"{line} {hits} | {precisions} | {lost:.1f} | {gained:.1f} |\n")
        return head + "".join(rows)

    def _ways(self) -> Iterator[tuple[str, Judged]]:
        query = self._features.test("new")

        def judged(galleries: Sequence[Vectors]) -> Judged:
            return Judged(tuple(self.judge(query, gallery) for gallery in galleries))

        def galleries(variant: str, side: str | None = "simclr") -> list[Vectors]:
            return [self.gallery(Spec("old", side, "new", variant, seed)) for seed in SEEDS]

        yield "paper's recipe", self.by_h("old", "simclr", "new", "paper")
        yield "one view of each image", self.by_h("old", "simclr", "new", "one view")
        yield "linear, in closed form", judged([self._linear()])
        yield "a linear skip, in closed form, and h beside it", self.by_h("old", "simclr", "new", "linear skip")
        yield "output projected to be >= 0", judged([np.maximum(gallery, 0) for gallery in galleries("paper")])
        yield "+ 0.3 supervised contrastive", self.by_h("old", "simclr", "new", "contrastive")
        yield "+ 0.3 entropy over class means", self.by_h("old", "simclr", "new", "class-mean entropy")
        yield "mean of three h", judged([np.mean(galleries("paper"), axis=0)])
        yield "mean of three h, distilled into one", self.by_h("old", "simclr", "new", "distilled ensemble")
        yield "weights averaged over the last epochs", self.by_h("old", "simclr", "new", "averaged weights")
        yield "mean of three h, disagreement as a coordinate", Judged((self._with_disagreement(galleries("paper")),))
        yield "two kinds of ψ in int8", self.by_h("old", "simclr+alternate", "new", "int8 side")
        yield "**default recipe**", self.by_h("old", "simclr", "new", "default")
        yield "default, mean of three h", judged([np.mean(galleries("default"), axis=0)])
        yield "default, two kinds of ψ in int8", self.by_h("old", "simclr+alternate", "new", "int8 side default")
        yield "paper's recipe without ψ", self.by_h("old", None, "new", "paper")
        yield "default recipe without ψ", self.by_h("old", None, "new", "default")

    def _linear(self) -> Vectors:
        old, side = (torch.from_numpy(self._features.test(name)) for name in ("old", "simclr"))
        return apply(linear_map(self._features, Spec("old", "simclr", "new")), old, side).numpy()

    def _with_disagreement(self, galleries: Sequence[Vectors]) -> RetrievalPerQuery:
        """Members of an ensemble disagree where the target is uncertain: one more coordinate, 0 in queries, puts such
        items farther away."""
        mean = np.mean(galleries, axis=0)
        spread = np.sqrt(np.mean((np.stack(galleries) - mean) ** 2, axis=0).sum(axis=1, keepdims=True))
        query = self._features.test("new")
        far = np.concatenate([mean, _DISAGREEMENT * spread], axis=1)
        return self.judge(np.concatenate([query, np.zeros_like(spread)], axis=1), far)

    def full_size(self) -> str:
        """Both recipes at the paper's size and length, one seed."""
        rows = []
        for recipe, variant in (("paper", "full size"), ("default", "full size default")):
            gallery = self.gallery(Spec("old", "simclr", "new", variant))
            judged = Judged((self.judge(self._features.test("new"), gallery),))
            rows.append(self.row(f"new/h, {recipe} recipe", judged))
        return _HEAD + "".join(rows)

    def unknown_classes(self) -> str:
        """What the class means cost images of classes that the new model does not know."""
        known = self._labels < _FIRST_UNKNOWN
        lines = "| queries | recipe | CMC@1 | CMC@5 | mAP |\n|---|---|---|---|---|\n"
        for name, chosen in (("of the 50 classes that φ_new knows", known), ("of the 50 that it does not", ~known)):
            for variant in ("paper", "default"):
                judged = self.by_h("first", "first-simclr", "old", variant)
                part = judged.of(chosen)
                cells = " | ".join(cell(part.values()[:, column]) for column in range(3))
                lines += f"| {name} | {variant} | {cells} |\n"
        return lines

    def costs(self) -> str:
        """Seconds, multiply-adds and bytes."""
        lines = "| network | million multiply-adds per image | trained in seconds | final loss |\n|---|---|---|---|\n"
        for name in NETWORKS:
            found = record(self._folder, name)
            macs = _multiply_adds(trained(self._folder, name), torch.zeros(1, 3, 32, 32))
            lines += f"| {name} | {macs / 1e6:.1f} | {found['seconds']:.0f} | {found['final_loss']:.2f} |\n"

        for variant in ("paper", "default", "full size"):
            spec = Spec("old", "simclr", "new", variant)
            network, config = load(self._folder, spec), VARIANTS[variant].config
            macs = _multiply_adds(network, torch.zeros(1, 128), torch.zeros(1, 128))
            what = f"h, {variant}: inner {config.inner_dim}, {config.epochs} epochs"
            lines += f"| {what} | {macs / 1e6:.2f} | {seconds_of(self._folder, spec):.0f} | |\n"

        minutes = [
            sum(seconds) / 60
            for seconds in (
                [record(self._folder, name)["seconds"] for name in NETWORKS],
                [seconds_of(self._folder, spec) for spec in wanted()],
            )
        ]

        spec = Spec("old", "simclr", "new", "full size")
        cached = seconds_of(self._folder, spec) / VARIANTS[spec.variant].config.epochs
        encoding = sum(self._seconds_to_encode(name) for name in ("old", "simclr", "new"))
        return lines + (
            f"\nTrainings ran with one thread each, several at a time: these networks took {minutes[0]:.0f} minutes,"
            f" {len(wanted())} h and g {minutes[1]:.0f}, one after the other. An item's embedding and ψ take 256 bytes"
            f" each as float16. An epoch of the paper's h on cached features takes {cached:.1f} s. Encoding its 50,000"
            f" images by φ_old, ψ and φ_new takes {encoding:.0f} s with one thread, here once per view. The released"
            f" code does it in every epoch: {1 + encoding / cached:.0f} times the work; more with larger backbones.\n"
        )

    def _seconds_to_encode(self, name: str) -> float:
        """Measure a part of the training images, and scale."""
        network, images = trained(self._folder, name), read(self._features.place, "train", self._folder)
        chosen = replace(images, rows=images.rows[::25], labels=images.labels[::25])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        embed_images(network, chosen)
        began = time.perf_counter()
        embed_images(network, chosen)
        seconds = time.perf_counter() - began
        torch.set_num_threads(threads)
        return seconds * len(images) / len(chosen)


_THROUGH = ("first", "first-simclr")
_DISAGREEMENT = 2.0


def wanted() -> list[Spec]:
    """Return every h and g that the tables need."""
    specs = []
    for seed in SEEDS:
        for variant in ("paper", "default"):
            pairs = [("old", side, "new") for side in (None, "simclr", "alternate", "alternate-mixup", "autoencoder")]
            pairs += [("old-conv", "simclr", "new"), ("old-64", "simclr", "new")]
            pairs += [("old-arcface", "simclr", "new-arcface")]
            pairs += [("first", "first-simclr", new) for new in ("old", "simclr", "new")]
            specs += [Spec(old, side, new, variant, seed) for old, side, new in pairs]
            specs.append(Spec("old", "simclr", "new", variant, seed, _THROUGH))
        specs += [Spec("first", None, new, "paper", seed) for new in ("old", "new")]
        specs += [Spec("old", "simclr", "new", name, seed) for name in ("one view", "contrastive")]
        names = ("class-mean entropy", "averaged weights", "distilled ensemble", "linear skip")
        specs += [Spec("old", "simclr", "new", name, seed) for name in names]
        specs += [Spec("old", "simclr+alternate", "new", name, seed) for name in ("int8 side", "int8 side default")]
    longest = [Spec("old", "simclr", "new", name) for name in ("full size", "full size default")]
    return [*longest, *specs]


def _of(metrics: RetrievalPerQuery, chosen: NDArray[np.bool_]) -> RetrievalPerQuery:
    return RetrievalPerQuery(metrics.first_match_ranks[chosen], metrics.average_precisions[chosen])


def cell(values: NDArray[np.float64], digits: int = 2) -> str:
    """Return the mean, and the standard deviation where there are several seeds."""
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def _interval(before: NDArray[np.float64], after: NDArray[np.float64]) -> str:
    found = paired_bootstrap(before, after, resamples=2_000)
    return f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def _multiply_adds(network: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Count those of convolutions and linear layers for one image."""
    counted: list[int] = []

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        places = output[0, 0].numel() if output.dim() == 4 else 1
        counted.append(weight.numel() * places)

    hooks = [
        layer.register_forward_hook(count)
        for layer in network.modules()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    with torch.inference_mode():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(counted)
