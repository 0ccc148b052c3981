"""A training's folder: the checkpoint, from which it goes on, and what it leaves at its end.

Each file is written beside its place, brought to the disk, and renamed: a crash leaves the one before or the new one.
A checkpoint is read as data only and cannot run code.
"""

import hashlib
import json
import os
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from models.artifacts import save_network
from models.backbones import ENCODERS, Backbone

CHECKPOINT = "checkpoint.pt"
NETWORK = "network.safetensors"
RECORD = "training.json"


class OtherTraining(ValueError):
    """The folder holds the checkpoint of another training; the message says what differs."""


def save_checkpoint(folder: Path, contents: dict[str, Any]) -> None:
    """Store nested dicts and lists of tensors, numbers and strings."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / CHECKPOINT, lambda file: torch.save(contents, file))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return what `save_checkpoint` stored, with tensors on the CPU, or None where there is no checkpoint."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return contents


def checkpoint_digest(folder: Path) -> str:
    """Return the checkpoint's SHA-256."""
    with (folder / CHECKPOINT).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    _write(folder / NETWORK, lambda file: file.write(save_network(network)))
    _write(folder / RECORD, lambda file: file.write(json.dumps(record, indent=2).encode() + b"\n"))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"seed": 0}} -> {"training.seed": 0}"""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the name durable: the file's own fsync does not
    finally:
        os.close(folder)
