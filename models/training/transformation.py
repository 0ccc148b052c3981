"""Training of h and g on cached features (paper, section 3.3; released code's configuration), and our default recipe.

The released code encodes every image anew in each epoch; here the three frozen encoders have run once, and the features
are what is trained on.

`recipe="paper"` is the paper's. `recipe="default"` learns the same way and adds what docs/results.md shows to be worth
having:
(a) where the target is never negative, neither is the output;
(b) where the rows have labels, the output is moved towards the new model's class means, by a share and with a
    temperature that are best on rows that were not learned from. That is for h; give rows for g without labels.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.metrics import query_metrics
from models.precision import Precision
from models.statistics import paired_bootstrap
from models.training.checkpoints import TrainingState, load_checkpoint_if_whole, save_checkpoint
from models.training.features import PairedFeatures
from models.training.loop import Progress, no_progress, warm_up_then_cosine
from models.transformation import ClassMeans, Transformation

Recipe = Literal["paper", "default"]
# (output, target, labels) of a batch -> a scalar that is added to the mean squared error.
ExtraLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_HELD_OUT = 0.1
_MOST_HELD_OUT = 5_000
# In units of the mean squared distance of a target from its class's mean.
_TEMPERATURES = (0.06, 0.11, 0.22, 0.45)
_SHARES = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class TransformationTraining:
    """The released code's settings."""

    epochs: int = 80
    warm_up_epochs: int = 5
    batch: int = 1024
    learning_rate: float = 5e-4
    weight_decay: float = 2**-15
    inner_dim: int = 2048
    seed: int = 0
    recipe: Recipe = "default"
    precision: Precision = "float32"  # of the products; the weights are float32


def train_transformation(
    pairs: PairedFeatures,
    config: TransformationTraining,
    progress: Progress = no_progress,
    checkpoint: Path | None = None,
    extra_loss: ExtraLoss | None = None,
) -> Transformation:
    """Return a network trained by mean squared error to `pairs.target`, in eval mode, on the device of `pairs`.

    In the second half of the epochs BatchNorm's statistics are frozen, as in the released code. An epoch takes every
    image once, by a view drawn at random. After each epoch the state is written to `checkpoint`, then `progress` is
    called; what it raises ends the training. A training of the same configuration that finds the file goes on from
    there, to the same weights. Raises ValueError for fewer than two samples.
    """
    if len(pairs) < 2:
        raise ValueError("Training a transformation needs at least two samples: BatchNorm cannot learn from one.")

    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    by_class = config.recipe == "default" and pairs.labels is not None
    learned, held_out = _split(pairs, generator) if by_class else (pairs, None)

    side_dim = None if pairs.side_information is None else pairs.side_information.shape[1]
    network = Transformation(pairs.embedding.shape[1], side_dim, pairs.target.shape[1], config.inner_dim)
    network.to(pairs.embedding.device)
    _fit(network, learned, config, generator, progress, checkpoint, extra_loss)

    if config.recipe == "default":
        network = _with_support(network, pairs.target)  # (a)
    if held_out is not None:  # (b)
        network = _with_class_means(network, learned, held_out)
    return network.eval()


def _fit(
    network: Transformation,
    pairs: PairedFeatures,
    config: TransformationTraining,
    generator: torch.Generator,
    progress: Progress,
    checkpoint: Path | None,
    extra_loss: ExtraLoss | None,
) -> None:
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = warm_up_then_cosine(optimizer, config.epochs, config.warm_up_epochs)
    state = TrainingState(network, optimizer, schedule, generator)

    configuration = {"pairs": len(pairs), "network": network.config(), "training": asdict(config)}
    stored = None if checkpoint is None else load_checkpoint_if_whole(checkpoint)
    epochs_done = 0
    if stored is not None and stored["configuration"] == configuration:
        state.restore(stored)
        epochs_done = stored["epoch"]

    for epoch in range(epochs_done, config.epochs):
        network.train(epoch < config.epochs // 2)
        for batch in pairs.batches(config.batch, generator):
            with torch.autocast(batch.target.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                output = network(batch.embedding, batch.side_information).float()
            loss = functional.mse_loss(output, batch.target)
            if extra_loss is not None:
                loss = loss + extra_loss(output, batch.target, batch.labels)

            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            optimizer.step()

        schedule.step()
        if checkpoint is not None:
            save_checkpoint(checkpoint, configuration, epoch + 1, state)
        progress(epoch + 1, config.epochs)


def _split(pairs: PairedFeatures, generator: torch.Generator) -> tuple[PairedFeatures, PairedFeatures]:
    """Return (to learn from, held out); the held-out images have one view each."""
    order = torch.randperm(len(pairs), generator=generator)
    count = min(_MOST_HELD_OUT, int(_HELD_OUT * len(pairs)))
    return pairs.take(order[count:]), pairs.take(order[:count]).first_view()


def _with_support(network: Transformation, target: Tensor) -> Transformation:
    """Return the network with a ReLU at its end, if no target is negative."""
    return _extended(network, non_negative=bool((target >= 0).all()))


def _with_class_means(network: Transformation, learned: PairedFeatures, held_out: PairedFeatures) -> Transformation:
    """Return the network with the class means of the new model behind it, or as it is where they do not help.

    Temperature and share are those of a small grid whose CMC@1 + mAP of new/h is best on the held-out rows, if that is
    better than without by more than chance (`models.statistics`): labels may have nothing to do with retrieval.
    """
    assert held_out.labels is not None
    if not len(held_out) or int(torch.bincount(held_out.labels).max()) < 2:
        return network

    shrinking, scatter = _class_means(learned)
    labels, query = held_out.labels.cpu().numpy(), held_out.target.cpu().numpy()
    with torch.inference_mode():
        estimate = network.eval()(held_out.embedding, held_out.side_information)

    def settle(temperature: float, share: float) -> None:
        shrinking.temperature.fill_(temperature * scatter)
        shrinking.share.fill_(share)

    def scores(temperature: float, share: float) -> NDArray[np.float64]:
        settle(temperature, share)
        with torch.inference_mode():
            moved = shrinking(estimate).cpu().numpy()
        found = query_metrics(query, labels, moved, labels, self_match=True, device=estimate.device.type)
        return np.where(found.first_match_ranks < 1, 1.0, 0.0) + found.average_precisions

    best = max(product(_TEMPERATURES, _SHARES), key=lambda setting: float(np.nanmean(scores(*setting))))
    if paired_bootstrap(scores(1.0, 0.0), scores(*best), resamples=1_000).low <= 0:
        return network

    settle(*best)
    extended = _extended(network, classes=len(shrinking.means))
    extended.class_means = shrinking
    return extended


def _class_means(learned: PairedFeatures) -> tuple[ClassMeans, float]:
    """Return the means of the classes that there are, and the mean squared distance of a target from its class's."""
    assert learned.labels is not None
    target = learned.first_view().target
    counts = torch.bincount(learned.labels)  # (C,)
    means = target.new_zeros(len(counts), target.shape[1]).index_add_(0, learned.labels, target)  # (C, D)
    means = means / counts.clamp(min=1)[:, None]
    scatter = float((target - means[learned.labels]).square().sum(dim=1).mean())

    known = counts > 0
    shrinking = ClassMeans(int(known.sum()), means.shape[1]).to(target.device)
    shrinking.means.copy_(means[known])
    return shrinking, scatter


def _extended(network: Transformation, **changes: bool | int) -> Transformation:
    """Return a copy with another configuration, in eval mode; what the first has no weights for is as it is built."""
    device = next(network.parameters()).device
    extended = Transformation(**{**network.config(), **changes}).to(device)
    extended.load_state_dict(network.state_dict(), strict=False)
    return extended.eval()
