"""A training's folder: the checkpoint, from which it goes on, and what it leaves at its end.

A crash leaves each file as it was, or new and whole. A checkpoint is read as data only and cannot run code.
"""

import hashlib
import json
import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.artifacts import save_network
from models.backbones import ENCODERS, Backbone
from models.durable import write_atomically

CHECKPOINT = "checkpoint.pt"
NETWORK = "network.safetensors"
RECORD = "training.json"


class OtherTraining(ValueError):
    """The folder holds the checkpoint of another training; the message says what differs."""


def save_checkpoint(folder: Path, contents: dict[str, Any]) -> None:
    """Store nested dicts and lists of tensors, numbers and strings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CHECKPOINT, lambda part: torch.save(contents, part))


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
    write_atomically(folder / NETWORK, lambda part: part.write_bytes(save_network(network)))
    write_atomically(folder / RECORD, lambda part: part.write_text(json.dumps(record, indent=2) + "\n"))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"seed": 0}} -> {"training.seed": 0}"""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
