"""Training of h and g on cached features (paper, section 3.3; released code's configuration), and our default recipe.

The released code encodes every image anew in each epoch; here the three frozen encoders have run once, and the features
are what is trained on.

`recipe="paper"` is the paper's: one network, mean squared error, nothing else. `recipe="default"` learns the same way
and adds what docs/results.md shows to help with items of any class, whether h has seen it or not:
(a) several members, whose mean is taken, and which learn from scaled values (`scales`);
(b) a share of a linear map in closed form (`linear_map`), chosen on rows that were not learned from: the larger the
    fewer the pairs, up to all of it;
(c) where the target is never negative, neither is the output.
With `task="class"` and labels, it also draws the output to the new model's class means (`class_means`). That erases
which item it was, for retrieval by class; give rows for g without labels.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.precision import Precision
from models.training.checkpoints import TrainingState, load_checkpoint_if_whole, position_of, save_checkpoint
from models.training.class_means import (
    NOT_USED,
    Setting,
    apply_setting,
    choose_setting,
    class_means,
    classes_to_leave_out,
)
from models.training.error_head import fit_error_head
from models.training.features import PairedFeatures
from models.training.linear_map import best_share, fit_linear_map
from models.training.loop import EpochProgress, Pause, Paused, never, no_progress, warm_up_then_cosine
from models.training.scales import Scales, fold_scales, scales_of
from models.training.widths import INNER_DIMS, LEAST_ROWS, narrowest
from models.transformation import Transformation

Recipe = Literal["paper", "default"]
Task = Literal["instance", "class"]
# (output, target, labels) of a batch -> a scalar that is added to the mean squared error.
ExtraLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_HELD_OUT = 0.1
_MOST_HELD_OUT = 5_000
_LEAST_BATCH = 64
_BATCHES_AN_EPOCH = 16
_INNER_DIM = 1024


@dataclass(frozen=True)
class TransformationTraining:
    """The released code's settings; `inner_dim` and `members` are the recipe's own where they are None: 2,048 and 1
    (paper), 1,024 and 2 (default). "auto", in the default recipe: the narrowest as good as 2,048 (`widths`). `task` is
    what the gallery is searched for: items, or classes of items."""

    epochs: int = 80
    warm_up_epochs: int = 5
    batch: int = 1024
    learning_rate: float = 5e-4
    weight_decay: float = 2**-15
    inner_dim: int | Literal["auto"] | None = None
    seed: int = 0
    recipe: Recipe = "default"
    precision: Precision = "float32"  # of the products; the weights are float32
    task: Task = "instance"
    members: int | None = None


@dataclass(frozen=True)
class FittedTransformation:
    """A trained network, in eval mode, and what was chosen for it on held-out rows."""

    network: Transformation
    choices: dict[str, Any]


def train_transformation(
    pairs: PairedFeatures,
    config: TransformationTraining,
    progress: EpochProgress = no_progress,
    checkpoint: Path | None = None,
    extra_loss: ExtraLoss | None = None,
    *,
    pause: Pause = never,
    with_uncertainty: bool = False,
    unit_norm: bool = False,
) -> FittedTransformation:
    """Return a network trained by mean squared error to `pairs.target`, on the device of `pairs`.

    In the second half of the epochs BatchNorm's statistics are frozen, as in the released code. An epoch takes every
    image once of each kind, by a view drawn at random. After each epoch the state is written to `checkpoint`, then
    `progress` is called, with what each member lost in the mean of every epoch (of a target scaled to a variance of 1,
    where the recipe scales); what it raises ends the training. `pause` is asked after each step of the optimiser: where
    it says yes, the state is written and `Paused` raised. A training of the same configuration that finds the file goes
    on from there, inside an epoch too, to the same weights. `with_uncertainty` adds a head for the squared error of
    each output, in the default recipe; with `unit_norm`, of the outputs brought to unit norm, as they are served where
    the target's are. Raises ValueError for fewer than two samples, and for an inner dimension that the paper's recipe
    is to choose.
    """
    if len(pairs) < 2:
        raise ValueError("Training a transformation needs at least two samples: BatchNorm cannot learn from one.")

    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    scales = None if config.recipe == "paper" else scales_of(pairs)
    fit = _Fit(config, generator, progress, checkpoint, extra_loss, scales, pause)
    if scales is None:
        if config.inner_dim == "auto":
            raise ValueError("The paper's recipe holds no rows out that an inner dimension could be chosen on.")
        network = _network(pairs, config.inner_dim or 2048, config.members or 1)
        fit.run({"network": network}, {"network": pairs})
        return FittedTransformation(network.eval(), {"members": len(network.members), "inner_dim": network.inner_dim})

    fitted, held_out = _train_default(pairs, fit, unit_norm)
    if with_uncertainty and len(held_out):
        return replace(fitted, network=_with_error_head(fitted.network, held_out, unit_norm))
    return fitted


def _train_default(pairs: PairedFeatures, fit: "_Fit", unit_norm: bool) -> tuple[FittedTransformation, PairedFeatures]:
    """Return what was fitted, and the rows that it did not learn from."""
    config, generator = fit.config, fit.generator
    learned, held_out = _split(pairs, generator)
    members, inner_dims = config.members or 2, _inner_dims(config, len(held_out))
    networks = {f"of {inner_dim}": _network(pairs, inner_dim, members) for inner_dim in inner_dims}  # (a)
    rows = dict.fromkeys(networks, learned)

    left_out = None
    if config.task == "class" and learned.labels is not None:
        left_out = classes_to_leave_out(learned.labels, generator)
        if len(left_out):
            middle = inner_dims[len(inner_dims) // 2]
            networks["probe"] = _network(pairs, middle, 1)
            kept = torch.nonzero(~torch.isin(learned.labels, left_out)).flatten().cpu()
            rows["probe"] = learned.take(kept)

    fit.run(networks, rows)

    non_negative = bool((pairs.target >= 0).all())
    candidates = {
        inner_dim: _completed(networks[f"of {inner_dim}"], learned, held_out, non_negative) for inner_dim in inner_dims
    }
    chosen, compared = inner_dims[0], None
    if len(candidates) > 1:
        chosen, compared = narrowest(candidates, held_out, unit_norm)
    network = candidates[chosen]
    choices: dict[str, Any] = {"members": members, "inner_dim": chosen}
    if compared is not None:
        choices["inner_dims"] = compared
    if network.linear_map is not None:
        choices["linear_share"] = float(network.linear_map.share)

    if left_out is not None:
        probe = _extended(networks["probe"], non_negative=non_negative) if "probe" in networks else None
        network, setting = _drawn_to_classes(network, probe, learned, held_out, left_out)
        choices |= {"class_means": setting, "classes_left_out": len(left_out)}

    return FittedTransformation(network.eval(), choices), held_out


def _inner_dims(config: TransformationTraining, held_out: int) -> tuple[int, ...]:
    """Return the inner dimensions to train, narrowest first."""
    if config.inner_dim == "auto":
        return INNER_DIMS if held_out >= LEAST_ROWS else (_INNER_DIM,)
    return (config.inner_dim or _INNER_DIM,)


def _completed(
    network: Transformation, learned: PairedFeatures, held_out: PairedFeatures, non_negative: bool
) -> Transformation:
    """Return the members with what stands beside them and after them."""
    if len(held_out):  # (b)
        network = _with_linear_map(network, learned, held_out)
    return _extended(network, non_negative=non_negative)  # (c)


def _drawn_to_classes(
    network: Transformation,
    probe: Transformation | None,
    learned: PairedFeatures,
    held_out: PairedFeatures,
    left_out: Tensor,
) -> tuple[Transformation, dict[str, float] | None]:
    """Return the network with the class means, if drawing to them pays on the classes that the probe did not see, and
    the setting that was chosen."""
    if probe is None:
        return network, None
    setting = choose_setting(probe, learned, held_out.first_view(), left_out)
    if setting is NOT_USED:
        return network, None
    return _with_class_means(network, learned, setting), asdict(setting)


def _network(pairs: PairedFeatures, inner_dim: int, members: int) -> Transformation:
    side_dim = None if pairs.side_information is None else pairs.side_information.shape[1]
    from_dim, to_dim = pairs.embedding.shape[1], pairs.target.shape[1]
    return Transformation(from_dim, side_dim, to_dim, inner_dim, members=members).to(pairs.embedding.device)


@dataclass(frozen=True)
class _Fit:
    """How networks are fitted, all of them in one run of epochs, and where it goes on after a stop."""

    config: TransformationTraining
    generator: torch.Generator
    progress: EpochProgress
    checkpoint: Path | None
    extra_loss: ExtraLoss | None
    scales: Scales | None
    pause: Pause

    def run(self, networks: dict[str, Transformation], rows: dict[str, PairedFeatures]) -> None:
        """Fit each network to its rows, and give it their scales where it learned without."""
        config, learned = self.config, nn.ModuleDict(networks)
        optimizer = torch.optim.Adam(
            learned.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        schedule = warm_up_then_cosine(optimizer, config.epochs, config.warm_up_epochs)
        state = TrainingState(learned, optimizer, schedule, self.generator)

        shapes = {name: [len(rows[name]), network.config()] for name, network in networks.items()}
        configuration = {"networks": shapes, "training": asdict(config), "scaled": self.scales is not None}
        stored = None if self.checkpoint is None else load_checkpoint_if_whole(self.checkpoint)
        epochs_done, steps_done = 0, 0
        losses, lost = list[float](), 0.0
        if stored is not None and stored["configuration"] == configuration:
            state.restore(stored)
            epochs_done, steps_done = position_of(stored)
            losses, lost = list(stored.get("losses", [])), stored.get("lost", 0.0)

        for epoch in range(epochs_done, config.epochs):
            learned.train(epoch < config.epochs // 2)
            at_start = torch.Generator()
            at_start.set_state(self.generator.get_state())
            mean = _Mean(lost, steps_done)
            for steps in self._steps(networks, rows, optimizer, steps_done, mean):
                if self.checkpoint is not None and self.pause():
                    # The shuffling is that of the epoch's start: whoever goes on draws the same batches again.
                    within = replace(state, generator=at_start)
                    save_checkpoint(
                        self.checkpoint, configuration, epoch, within, steps=steps, losses=losses, lost=mean.sum()
                    )
                    raise Paused

            steps_done, lost = 0, 0.0
            schedule.step()
            losses.append(mean.value())
            if self.checkpoint is not None:
                save_checkpoint(self.checkpoint, configuration, epoch + 1, state, losses=losses)
            self.progress(epoch + 1, config.epochs, losses)

        if self.scales is not None:
            for network in networks.values():
                fold_scales(network, self.scales)

    def _steps(
        self,
        networks: dict[str, Transformation],
        rows: dict[str, PairedFeatures],
        optimizer: torch.optim.Optimizer,
        steps_done: int,
        mean: "_Mean",
    ) -> Iterator[int]:
        """Take the steps of one epoch, and give after each how many there were. The batches of those that are done are
        drawn again, and nothing is learned from them. `mean` is told what each member lost."""
        steps = 0
        for name, network in networks.items():
            for batch in rows[name].batches(self._batch_size(len(rows[name]) * rows[name].kinds), self.generator):
                steps += 1
                if steps <= steps_done:
                    continue
                optimizer.zero_grad()
                loss = self._loss(network, batch)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
                optimizer.step()
                mean.add(loss.detach() / len(network.members))
                yield steps

    def _loss(self, network: Transformation, batch: PairedFeatures) -> Tensor:
        """Return the sum of what each member loses: they learn independently of each other."""
        embedding, side, target = batch.embedding, batch.side_information, batch.target
        if self.scales is not None:
            embedding, target = self.scales.embedding(embedding), self.scales.target(target)
            side = None if side is None else self.scales.side_information(side)

        with torch.autocast(target.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            outputs = network.estimates(embedding, side).float()
        loss = outputs.new_zeros(())
        for output in outputs:
            loss = loss + functional.mse_loss(output, target)
            if self.extra_loss is not None:
                loss = loss + self.extra_loss(output, target, batch.labels)
        return loss

    def _batch_size(self, rows: int) -> int:
        """Return the size of a batch: smaller where rows are so few that an epoch would hardly have a step."""
        if self.config.recipe == "paper":
            return self.config.batch
        return min(self.config.batch, max(_LEAST_BATCH, rows // _BATCHES_AN_EPOCH))


class _Mean:
    """The mean of losses, summed where they are, so that no step waits for a device; `sum_before` of `count` of them
    was known before."""

    def __init__(self, sum_before: float, count: int) -> None:
        self._before = sum_before
        self._count = count
        self._sum: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1

    def sum(self) -> float:
        return self._before + (0.0 if self._sum is None else float(self._sum))

    def value(self) -> float:
        return self.sum() / self._count


def _split(pairs: PairedFeatures, generator: torch.Generator) -> tuple[PairedFeatures, PairedFeatures]:
    """Return (to learn from, with all views; held out, with the first of each kind)."""
    order = torch.randperm(len(pairs), generator=generator)
    count = min(_MOST_HELD_OUT, int(_HELD_OUT * len(pairs)))
    return pairs.take(order[count:]), pairs.take(order[:count]).first_views()


def _with_linear_map(network: Transformation, learned: PairedFeatures, held_out: PairedFeatures) -> Transformation:
    """Return the network with a linear map beside it, or the map alone where that takes the whole share."""
    linear = fit_linear_map(learned, held_out)
    with torch.inference_mode():
        mean = network.eval()(held_out.embedding, held_out.side_information)
        share = best_share(mean, linear(held_out.embedding, held_out.side_information), held_out.target)
    linear.share.fill_(share)

    extended = _extended(network, linear=True, members=None if share == 1 else len(network.members))
    extended.linear_map = linear
    return extended


def _with_class_means(network: Transformation, learned: PairedFeatures, setting: Setting) -> Transformation:
    drawing, scatter = class_means(learned)
    apply_setting(drawing, setting, scatter)
    extended = _extended(network, classes=len(drawing.means))
    extended.class_means = drawing
    return extended


def _with_error_head(network: Transformation, held_out: PairedFeatures, unit_norm: bool) -> Transformation:
    """Return the network with a head; without one where no error is to be seen, or none that is finite."""
    with torch.inference_mode():
        output, described = network.described(held_out.embedding, held_out.side_information)
        if unit_norm:
            output = functional.normalize(output)
        errors = (output - held_out.target).square().sum(dim=1)
    if not bool(errors.isfinite().all() and (errors > 0).any()):
        return network

    extended = _extended(network, error_head=True)
    extended.error_head = fit_error_head(described.clone(), errors.clone())
    return extended


def _extended(network: Transformation, **changes: bool | int | None) -> Transformation:
    """Return a copy with another configuration, in eval mode; what the first has no weights for is as it is built."""
    device = next(network.parameters()).device
    extended = Transformation(**{**network.config(), **changes}).to(device)
    extended.load_state_dict(network.state_dict(), strict=False)
    return extended.eval()
