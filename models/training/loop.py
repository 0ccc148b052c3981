"""What every training here shares: batches, the learning rate's course, and saying how far it is."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# Called with (done, in all), of epochs or of images.
Progress = Callable[[int, int], None]
# Called after each epoch with (done, in all, the mean loss of each that is done).
EpochProgress = Callable[[int, int, Sequence[float]], None]
# Asked whether to stop here, and go on another time.
Pause = Callable[[], bool]


class Paused(Exception):
    """The training stopped where it was asked to; its checkpoint says where."""


def no_progress(*_: object) -> None:
    """Say nothing."""


def never() -> bool:
    """Do not stop."""
    return False


def shuffled_batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Give (b,) int64 positions of every one of `count` samples once, in random order.

    A last batch of a single sample joins the one before it: BatchNorm cannot learn from one.
    """
    order = torch.randperm(count, generator=generator)
    starts = list(range(0, count, batch))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield order[start:end]


def warm_up_then_cosine(optimizer: Optimizer, epochs: int, warm_up_epochs: int) -> LambdaLR:
    """Return a schedule, stepped once per epoch: linear to the full rate, then half a cosine towards 0."""

    def factor(epoch: int) -> float:
        if epoch < warm_up_epochs:
            return (epoch + 1) / warm_up_epochs
        return 0.5 * (1 + math.cos(math.pi * (epoch - warm_up_epochs) / max(1, epochs - warm_up_epochs)))

    return LambdaLR(optimizer, factor)


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Order the weights in memory; `channels_last` is what convolutions on a CPU are fastest in."""
    network.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's annotations lack it
