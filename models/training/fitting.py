"""What the trainings of φ and ψ share: settings, a network's inputs and precision, the loop and its checkpoints."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.backbones import Backbone
from models.precision import Precision, fastest_precision
from models.preprocessing import Preprocessing
from models.training.checkpoints import (
    CHECKPOINT,
    TrainingState,
    check_same,
    export,
    load_checkpoint,
    save_checkpoint,
)
from models.training.data import TrainingImages
from models.training.loop import lay_out, no_progress, shuffled_batches, warm_up_then_cosine

# Called after each batch with (images seen, images in all epochs, the batch's loss).
BatchProgress = Callable[[int, int, float], None]


class Diverged(ArithmeticError):
    """The loss is no longer a number; the message says when."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of any training of a network. `precision` is what its convolutions compute in, the weights always
    being float32; None chooses by a short trial."""

    epochs: int
    warm_up_epochs: int = 2
    batch: int
    learning_rate: float
    weight_decay: float
    flip: bool = True
    seed: int = 0
    precision: Precision | None = None


@dataclass(frozen=True)
class Run:
    """Where a training runs. In `folder` it leaves a checkpoint after each epoch, from which the same call goes on,
    and at its end `network.safetensors`, to be registered, and `training.json`, its record."""

    folder: Path | None = None
    device: str = "cpu"
    progress: BatchProgress = no_progress

    def checkpoint(self) -> dict[str, Any] | None:
        """Return what an interrupted training left in the folder, if it left something."""
        return None if self.folder is None else load_checkpoint(self.folder / CHECKPOINT)


IN_MEMORY = Run()


@dataclass(frozen=True)
class Trained:
    """A trained network, in eval mode and on the CPU, and what `training.json` says."""

    network: Backbone
    record: dict[str, Any]


AnyTraining = TypeVar("AnyTraining", bound=Training)


def settle_precision(config: AnyTraining, run: Run) -> AnyTraining:
    """Return the settings with a precision: as it is, or else as an interrupted run had it, or the fastest."""
    if config.precision is not None:
        return config
    checkpoint = run.checkpoint()
    if checkpoint is not None:
        return replace(config, precision=checkpoint["configuration"]["training"]["precision"])
    return replace(config, precision=fastest_precision(run.device))


def standardized(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) of 0 to 255, of any type -> what a network is given of them, float32, in channels_last order."""
    mean, std = (torch.tensor(values, device=images.device) for values in (preprocessing.mean, preprocessing.std))
    inputs = (images / 255 - mean[:, None, None]) / std[:, None, None]
    return inputs.contiguous(memory_format=torch.channels_last)


def encode(network: nn.Module, images: Tensor, preprocessing: Preprocessing, precision: Precision | None) -> Tensor:
    """(B, 3, H, W) of 0 to 255, of any type -> (B, D) float32, the network having computed in `precision`."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        features: Tensor = network(standardized(images, preprocessing))
    return features.float()


def embed_images(network: nn.Module, images: TrainingImages, device: str = "cpu", batch: int = 512) -> Tensor:
    """Return the (N, D) embeddings of images by a network in eval mode on `device`, all in float32, on the CPU."""
    with torch.inference_mode():
        parts = torch.split(torch.arange(len(images)), batch)
        features = [encode(network, images.take(part).to(device), images.preprocessing, "float32") for part in parts]
        return torch.cat([part.cpu() for part in features])


def fit(
    learned: nn.ModuleDict,
    optimizer: Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    images: TrainingImages,
    config: Training,
    run: Run,
    compatible_with: str | None = None,
) -> Trained:
    """Minimise `loss_of`, (b,) int64 positions -> a scalar, over all epochs; return `learned["network"]`, trained.

    All randomness is of torch's generator on the CPU, whose state is in the checkpoint: on a CPU, an interrupted
    training that is started again on the same machine with as many threads ends in the same bits as one that ran
    through. Raises `Diverged`, and `OtherTraining` where the folder's checkpoint is of other settings or images.
    """
    network = learned["network"]
    assert isinstance(network, Backbone)

    configuration = _describe(network, images, config, compatible_with)
    schedule = warm_up_then_cosine(optimizer, config.epochs, config.warm_up_epochs)
    state = TrainingState(learned, optimizer, schedule, torch.default_generator)
    lay_out(learned, torch.channels_last)
    epoch, seconds, loss = _restore(state, configuration, run)

    learned.train()
    while epoch < config.epochs:
        began = time.monotonic()
        loss = _one_epoch(optimizer, loss_of, len(images), config, epoch, run.progress)
        schedule.step()
        epoch, seconds = epoch + 1, seconds + time.monotonic() - began
        if run.folder is not None:
            save_checkpoint(run.folder / CHECKPOINT, configuration, epoch, state, seconds=seconds, loss=loss)

    lay_out(network.cpu().eval(), torch.contiguous_format)
    record = {**configuration, "final_loss": loss, "seconds": seconds, "device": run.device, "torch": torch.__version__}
    if run.folder is not None:
        export(run.folder, network, record)
    return Trained(network, record)


def _restore(state: TrainingState, configuration: dict[str, Any], run: Run) -> tuple[int, float, float]:
    """Put the state where an interrupted training left it, and return the epochs done, their seconds and last loss."""
    checkpoint = run.checkpoint()
    if run.folder is None or checkpoint is None:
        return 0, 0.0, math.nan
    check_same(run.folder, checkpoint["configuration"], configuration)
    state.restore(checkpoint)
    return checkpoint["epoch"], checkpoint["seconds"], checkpoint["loss"]


def _one_epoch(
    optimizer: Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    config: Training,
    epoch: int,
    progress: BatchProgress,
) -> float:
    """Return the mean loss of the epoch's images."""
    seen, total = 0, 0.0
    for positions in shuffled_batches(count, config.batch, torch.default_generator):
        loss = loss_of(positions)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"In epoch {epoch + 1} the loss became {value}; try a lower learning rate.")
        seen, total = seen + len(positions), total + value * len(positions)
        progress(epoch * count + seen, config.epochs * count, value)
    return total / count


def _describe(
    network: Backbone, images: TrainingImages, config: Training, compatible_with: str | None
) -> dict[str, Any]:
    """Return all that a training's outcome depends on, but for the machine."""
    return {
        "network": {"network": type(network).__name__, "config": network.config()},
        "training": {"kind": type(config).__name__, **asdict(config)},
        "images": {
            "count": len(images),
            "classes": images.classes,
            "digest": images.digest,
            "preprocessing": images.preprocessing.to_json(),
        },
        "compatible_with": compatible_with,
    }
