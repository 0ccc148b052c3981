"""Checkpoints, in the one format of all trainings: the state after an epoch, or inside one, from which going on is the
same as never having stopped. And what a training of φ or ψ leaves in its folder at its end.

A crash leaves each file as it was, or new and whole. A checkpoint is read as data only and cannot run code. It holds:

    configuration                   all that the outcome depends on, but for the machine
    epoch                           epochs done
    learned, optimizer, schedule    the state of each
    random                          the generator's state, at the start of the epoch where it is inside one
    and the numbers that the training counts, such as the losses, or the steps of the epoch that is not done
"""

import json
import logging
import pickle
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from models.artifacts import save_network
from models.backbones import ENCODERS, Backbone
from models.durable import write_atomically

CHECKPOINT = "checkpoint.pt"
NETWORK = "network.safetensors"
RECORD = "training.json"

_PARTS = {"configuration", "epoch", "learned", "optimizer", "schedule", "random"}

_log = logging.getLogger(__name__)


class OtherTraining(ValueError):
    """The folder holds the checkpoint of another training; the message says what differs."""


class DamagedCheckpoint(ValueError):
    """The file is not a whole checkpoint; the message says why."""


@dataclass(frozen=True)
class TrainingState:
    """The parts of a training that change from epoch to epoch."""

    learned: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    generator: torch.Generator

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Put every part where a checkpoint left it."""
        self.learned.load_state_dict(checkpoint["learned"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        self.generator.set_state(checkpoint["random"])


def save_checkpoint(
    path: Path, configuration: dict[str, Any], epoch: int, state: TrainingState, **counted: float | list[float]
) -> None:
    """Replace `path` in one step. `configuration` is of nested dicts and lists of numbers and strings."""
    contents = {
        "configuration": configuration,
        "epoch": epoch,
        "learned": state.learned.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "random": state.generator.get_state(),
        **counted,
    }

    def write(part: Path) -> None:
        with part.open("wb") as stream:  # given a path, torch would write its name into the file
            torch.save(contents, stream)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return what `save_checkpoint` stored, with tensors on the CPU, or None where there is no checkpoint. Raises
    `DamagedCheckpoint`."""
    if not path.exists():
        return None
    try:
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not contents.keys() >= _PARTS:
            raise ValueError("parts are missing")
    except (RuntimeError, ValueError, OSError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise DamagedCheckpoint(f"The checkpoint {path} is damaged: {error}") from error
    return contents


def position_of(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Return the epochs that are done, and the steps of the next one."""
    return checkpoint["epoch"], checkpoint.get("steps", 0)


def load_checkpoint_if_whole(path: Path) -> dict[str, Any] | None:
    """Return what `load_checkpoint` does, or None, with a warning, where it is damaged."""
    try:
        return load_checkpoint(path)
    except DamagedCheckpoint as error:
        _log.warning("%s It is not used.", error)
        return None


def check_same(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise `OtherTraining` unless both configurations are the same."""
    stored, wanted = _flat(stored), _flat(wanted)
    for name in {**wanted, **stored}:
        if stored.get(name) != wanted.get(name):
            raise OtherTraining(
                f"{folder} has a checkpoint of another training: {name} is {reprlib.repr(stored.get(name))} there and"
                f" {reprlib.repr(wanted.get(name))} here. Use another folder, or delete that one to begin again."
            )


def part_of(checkpoint: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Return the weights of one part of what learned, such as "network" or "head"."""
    learned: dict[str, Tensor] = checkpoint["learned"]
    prefix = name + "."
    return {key.removeprefix(prefix): value for key, value in learned.items() if key.startswith(prefix)}


def rebuild_network(checkpoint: dict[str, Any]) -> Backbone:
    """Return the network that a checkpoint holds, in eval mode."""
    described = checkpoint["configuration"]["network"]
    network = ENCODERS[described["network"]](**described["config"])
    network.load_state_dict(part_of(checkpoint, "network"))
    return network.eval()


def export(folder: Path, network: Backbone, record: dict[str, Any]) -> None:
    """Write the network as the service registers it, and the training's record."""
    write_atomically(folder / NETWORK, lambda part: part.write_bytes(save_network(network)))
    write_atomically(folder / RECORD, lambda part: part.write_text(json.dumps(record, indent=2) + "\n"))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"seed": 0}} -> {"training.seed": 0}"""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
