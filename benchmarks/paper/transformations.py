"""The h and g of the tables: what each learns from, how, and training them, several at a time."""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn import functional

from benchmarks.paper.classes import SETS
from benchmarks.paper.networks import NETWORKS, read, trained
from benchmarks.paper.views import second_views
from models.artifacts import read_config, save_network
from models.normalize import l2_normalize
from models.training.checkpoints import load_checkpoint, part_of
from models.training.data import TrainingImages
from models.training.features import PairedFeatures, cached_features
from models.training.linear_map import fit_linear_map
from models.training.transformation import ExtraLoss, TransformationTraining, train_transformation
from models.transformation import LinearMap, Transformation

Vectors = NDArray[np.float32]
VIEWS = 4
SEEDS = (0, 1, 2)
_EPOCHS = 16
_INNER_DIM = 512


@dataclass(frozen=True)
class Variant:
    """A way to train h.

    `side_levels`: side-information is stored as integers of so many levels. `target`: what h learns is φ_new, or the
    mean of what the paper's h of every seed give, or what a linear map leaves of φ_new. `averaged`: its weights are the
    mean of those after each of the last epochs.
    """

    config: TransformationTraining
    views: int = VIEWS
    extra_loss: ExtraLoss | None = None
    side_levels: int | None = None
    target: Literal["encoder", "ensemble", "residual"] = "encoder"
    averaged: bool = False


@dataclass(frozen=True)
class Spec:
    """One network: from φ `old` and ψ `side` (several names joined by "+" are concatenated) to `new`.

    With `through`, it also learns from what the transformations from `through` to `old` and `side` give, as further
    views of the same images; with `classes`, from images of that set of classes alone, and with `pairs` from so many
    images alone, drawn by `seed`.
    """

    old: str
    side: str | None
    new: str
    variant: str = "paper"
    seed: int = 0
    through: tuple[str, str] | None = None
    classes: str | None = None
    pairs: int | None = None

    def file(self, folder: Path) -> Path:
        parts = [self.old, self.side or "none", self.new, self.variant, str(self.seed)]
        parts += [] if self.through is None else ["through", *self.through]
        parts += [] if self.classes is None else [self.classes]
        parts += [] if self.pairs is None else [f"{self.pairs}-pairs"]
        return folder / "h" / ("--".join(parts) + ".safetensors")


def _contrastive(output: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
    """Supervised contrastive (Khosla et al., NeurIPS 2020) with φ_new as anchors and h as the others."""
    loss: Tensor = _SUPERVISED(target, labels, ref_emb=output, ref_labels=labels)
    return 0.3 * target.var() * loss


def _class_mean_entropy(output: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
    """Cross entropy of h's class by the distance to the batch's class means of φ_new."""
    assert labels is not None
    classes, positions = torch.unique(labels, return_inverse=True)
    sums = target.new_zeros(len(classes), target.shape[1]).index_add_(0, positions, target)
    means = sums / torch.bincount(positions)[:, None]
    variance = target.var()
    logits = -torch.cdist(output, means).square() / (16 * variance)
    return 0.3 * variance * functional.cross_entropy(logits, positions)


_SUPERVISED = SupConLoss(temperature=0.1)
_PAPER = TransformationTraining(epochs=_EPOCHS, inner_dim=_INNER_DIM, recipe="paper", precision="bfloat16")
_DEFAULT = TransformationTraining(epochs=_EPOCHS, inner_dim=_INNER_DIM, members=4, precision="bfloat16")
VARIANTS: dict[str, Variant] = {
    "paper": Variant(_PAPER),
    "default": Variant(_DEFAULT),
    "by class": Variant(replace(_DEFAULT, task="class")),
    "full size": Variant(TransformationTraining(recipe="paper", precision="bfloat16")),
    "full size default": Variant(TransformationTraining(precision="bfloat16")),
    "one epoch": Variant(replace(_PAPER, epochs=1)),
    "longer": Variant(replace(_PAPER, epochs=80)),
    "longer default": Variant(replace(_DEFAULT, epochs=80)),
    "one view": Variant(_PAPER, views=1),
    "contrastive": Variant(_PAPER, extra_loss=_contrastive),
    "class-mean entropy": Variant(_PAPER, extra_loss=_class_mean_entropy),
    "averaged weights": Variant(_PAPER, averaged=True),
    "distilled ensemble": Variant(_PAPER, target="ensemble"),
    "linear skip": Variant(_PAPER, target="residual"),
    "int8 side": Variant(_PAPER, side_levels=256),
    "int8 side default": Variant(_DEFAULT, side_levels=256),
}


@dataclass
class Features:
    """What the encoders give: of the training images, in views, of the test images as they are, and of a second view of
    each of these."""

    place: Path
    folder: Path
    _kept: dict[tuple[str, str], Vectors] = field(default_factory=dict)

    def train(self, name: str) -> Vectors:
        """(V, N, D)."""
        return self._features(name, "train", VIEWS)

    def test(self, name: str) -> Vectors:
        """(N, D)."""
        features: Vectors = self._features(name, "test", 1)[0]
        return features

    def second_view(self, name: str) -> Vectors:
        """(N, D), of `second_views` of the test images."""
        features: Vectors = self._features(name, "second view", 1)[0]
        return features

    def labels(self, part: str, name: str = "new") -> Tensor:
        """(N,) int64, of the images that the encoder `name` is given."""
        return self._images(name, part).labels

    def _images(self, name: str, part: str) -> TrainingImages:
        size = NETWORKS[name.split("+")[0]].size
        if part == "second view":
            return second_views(read(self.place, "test", self.folder, size))
        return read(self.place, part, self.folder, size)

    def _features(self, name: str, part: str, views: int) -> Vectors:
        if (name, part) not in self._kept:
            networks = [trained(self.place, self.folder, single) for single in name.split("+")]
            images = self._images(name, part)
            found = [cached_features(self.folder / "features", network, images, views) for network in networks]
            if "arcface" in name and len(found) == 1:  # its embeddings are compared by their angles
                found = [l2_normalize(found[0].reshape(-1, found[0].shape[2])).reshape(found[0].shape)]
            self._kept[name, part] = found[0] if len(found) == 1 else np.concatenate(found, axis=2)
        return self._kept[name, part]


def train_transformations(features: Features, specs: Iterable[Spec], at_once: int) -> None:
    """Train what is not trained yet, `at_once` at a time with one thread each."""
    waiting = [spec for spec in dict.fromkeys(specs) if not spec.file(features.folder).exists()]
    for learns_from_others in (False, True):
        chosen = [spec for spec in waiting if _learns_from_others(spec) == learns_from_others]
        names = sorted({name for spec in chosen for name in (spec.old, spec.side, spec.new) if name is not None})
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(at_once, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(partial(_compute, features.place, features.folder), names))  # once, before several want them
            for number, seconds in enumerate(pool.map(partial(_train, features.place, features.folder), chosen)):
                print(f"{number + 1}/{len(chosen)} {chosen[number]}: {seconds:.0f} s", flush=True)


def _learns_from_others(spec: Spec) -> bool:
    return spec.through is not None or VARIANTS[spec.variant].target == "ensemble"


def _compute(place: Path, folder: Path, name: str) -> None:
    Features(place, folder).train(name)


def _train(place: Path, folder: Path, spec: Spec) -> float:
    features, variant = Features(place, folder), VARIANTS[spec.variant]
    views = variant.views
    old, side = _inputs(features, spec, views)
    target = _target(features, spec, old, side)
    kinds = 1 if spec.through is None else 2
    if spec.through is not None:
        chained_old, chained_side = _given_by_chain(features, spec, spec.through, views)
        old, target, views = torch.cat([old, chained_old]), torch.cat([target, target]), 2 * views
        side = None if side is None or chained_side is None else torch.cat([side, chained_side])
    labels = None if spec.new.endswith("simclr") else features.labels("train", spec.old)  # g needs none
    pairs = _chosen(PairedFeatures(old, side, target, labels, views, kinds), spec)
    config = TransformationTraining(**{**vars(variant.config), "seed": spec.seed})
    began = time.monotonic()
    if variant.averaged:
        network, choices = _train_averaged(pairs, config, variant.extra_loss), {}
    else:
        is_h = not spec.new.endswith("simclr")
        fitted = train_transformation(
            pairs, config, extra_loss=variant.extra_loss, with_uncertainty=is_h, unit_norm="arcface" in spec.new
        )
        network, choices = fitted.network, fitted.choices
    seconds = time.monotonic() - began
    path = spec.file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"seconds": seconds, "choices": choices}))
    path.write_bytes(save_network(network))
    return seconds


def _chosen(pairs: PairedFeatures, spec: Spec) -> PairedFeatures:
    if spec.classes is not None:
        assert pairs.labels is not None
        chosen = torch.isin(pairs.labels, torch.tensor(SETS[spec.classes]))
        pairs = pairs.take(torch.nonzero(chosen).flatten())
    if spec.pairs is not None:
        generator = torch.Generator().manual_seed(spec.seed)
        pairs = pairs.take(torch.randperm(len(pairs), generator=generator)[: spec.pairs])
    return pairs


def _train_averaged(
    pairs: PairedFeatures, config: TransformationTraining, extra_loss: ExtraLoss | None
) -> Transformation:
    """Train h, and give it the mean of its weights after each epoch of the last quarter (SWA: Izmailov et al., UAI
    2018), in which BatchNorm's statistics are frozen."""
    states: list[dict[str, Tensor]] = []
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "checkpoint"

        def keep(done: int, total: int, _: Sequence[float]) -> None:
            if done > 3 * total // 4:
                stored = load_checkpoint(checkpoint)
                assert stored is not None
                states.append({name: value.clone() for name, value in part_of(stored, "network").items()})

        network = train_transformation(pairs, config, keep, checkpoint, extra_loss).network
    means = {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}
    network.load_state_dict({name: value.to(states[0][name].dtype) for name, value in means.items()})
    return network


def _target(features: Features, spec: Spec, old: Tensor, side: Tensor | None) -> Tensor:
    variant = VARIANTS[spec.variant]
    target = _rows(features.train(spec.new), variant.views)
    if variant.target == "ensemble":
        members = [load(features, replace(spec, variant="paper", seed=seed)) for seed in SEEDS]
        return torch.stack([apply(member, old, side) for member in members]).mean(0)
    if variant.target == "residual":
        return target - apply(linear_map(features, spec), old, side)
    return target


def linear_map(features: Features, spec: Spec) -> LinearMap:
    """Return the linear map that the default recipe has, fitted on every view of nine tenths of the training images."""
    pairs = PairedFeatures(*_inputs(features, spec, VIEWS), _rows(features.train(spec.new), VIEWS), None, VIEWS)
    order, held_out = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)), len(pairs) // 10
    return fit_linear_map(pairs.take(order[held_out:]), pairs.take(order[:held_out]).first_view())


def _inputs(features: Features, spec: Spec, views: int) -> tuple[Tensor, Tensor | None]:
    variant = VARIANTS[spec.variant]
    old = _rows(features.train(spec.old), views)
    side = None if spec.side is None else _rows(features.train(spec.side), views)
    if side is not None and variant.side_levels is not None:
        side = as_levels(side, variant.side_levels)
    return old, side


def _given_by_chain(
    features: Features, spec: Spec, through: tuple[str, str], views: int
) -> tuple[Tensor, Tensor | None]:
    """Return what h and g of the hop before, of the same variant and seed, give for the training images."""
    first, first_side = (_rows(features.train(name), views) for name in through)
    old, side = (
        None
        if name is None
        else apply(load(features, Spec(*through, name, spec.variant, spec.seed)), first, first_side)
        for name in (spec.old, spec.side)
    )
    assert old is not None
    return old, side


def _rows(values: Vectors, views: int) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values[:views]).reshape(-1, values.shape[2]))


def as_levels(values: Tensor, levels: int) -> Tensor:
    """Round (N, S) values of 0 and above to integers of so many levels, per dimension, and back."""
    step = values.amax(dim=0).clamp(min=1e-6) / (levels - 1)
    return (values / step).round() * step


def load(features: Features, spec: Spec) -> Transformation:
    """Return a network, trained first where it is not yet."""
    data = _file(features, spec).read_bytes()
    network = Transformation(**read_config(data)["config"])
    network.load_state_dict(safetensors.torch.load(data))
    return network.eval()


def apply(network: Callable[[Tensor, Tensor | None], Tensor], old: Tensor, side: Tensor | None) -> Tensor:
    """(N, D_from), (N, S) or None -> (N, D_to), in parts."""
    with torch.inference_mode():
        parts = torch.split(torch.arange(len(old)), 10_000)
        found = [network(old[part], None if side is None else side[part]) for part in parts]
    return torch.cat(found).clone()


def expected_errors(features: Features, spec: Spec) -> NDArray[np.float32]:
    """Return (N,) the squared errors that h expects of what it makes of the test images."""
    assert spec.side is not None
    old, side = (torch.from_numpy(features.test(name)) for name in (spec.old, spec.side))
    with torch.inference_mode():
        _, expected = load(features, spec).with_uncertainty(old, side)
    assert expected is not None, "this h does not say"
    return expected.numpy()


def seconds_of(features: Features, spec: Spec) -> float:
    """Return how long a training took."""
    found: float = _record(features, spec)["seconds"]
    return found


def choices_of(features: Features, spec: Spec) -> dict[str, Any]:
    """Return what a training chose on held-out rows."""
    found: dict[str, Any] = _record(features, spec)["choices"]
    return found


def _record(features: Features, spec: Spec) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(_file(features, spec).with_suffix(".json").read_text())
    return record


def _file(features: Features, spec: Spec) -> Path:
    """Return where a network is, once it is there."""
    path = spec.file(features.folder)
    if not path.exists():
        print(f"{spec}: {_train(features.place, features.folder, spec):.0f} s", flush=True)
    return path
