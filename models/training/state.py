"""The state of h's or g's training after an epoch, in one file: going on from it is the same as never having stopped.
Loading it runs no code (`weights_only`). For φ and ψ see `models.training.checkpoints`."""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from models.durable import write_atomically

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """The parts of a training that change from epoch to epoch."""

    network: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    generator: torch.Generator


def save_checkpoint(path: Path, identity: str, epochs_done: int, state: TrainingState) -> None:
    """Replace `path` in one step.

    `identity` says what is trained, on what: a checkpoint of another identity is not gone on from.
    """
    contents = {
        "identity": identity,
        "epochs_done": epochs_done,
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "generator": state.generator.get_state(),
    }
    write_atomically(path, lambda part: torch.save(contents, part))


def restore_checkpoint(path: Path, identity: str, state: TrainingState) -> int:
    """Put `state` where the checkpoint left it and return the epochs done; 0, and nothing is changed, when there is no
    readable checkpoint of this identity."""
    saved = _load(path)
    if saved is None or saved["identity"] != identity:
        return 0
    state.network.load_state_dict(saved["network"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.schedule.load_state_dict(saved["schedule"])
    state.generator.set_state(saved["generator"])
    epochs_done: int = saved["epochs_done"]
    return epochs_done


def epochs_in_checkpoint(path: Path) -> int:
    """Return the epochs done at a checkpoint; 0 when there is no readable one."""
    saved = _load(path)
    return 0 if saved is None else int(saved["epochs_done"])


def _load(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not {"identity", "epochs_done", "network", "optimizer", "schedule", "generator"} <= saved.keys():
            raise ValueError("parts are missing")
        return saved
    except (RuntimeError, ValueError, OSError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        _log.warning("the checkpoint %s is damaged and is not used: %s", path, error)
        return None
