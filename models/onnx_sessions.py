"""ONNX Runtime sessions: how one is opened, and what others need to know of it. Imports no torch, so that a process
that only runs a network starts in half a second."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Values = NDArray[Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Argument:
    """An input or output as the file declares it: `type` as ONNX Runtime writes it, such as tensor(float); in `shape`
    a free axis is a name or None, and None is a shape that is not said."""

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


class Session(Protocol):
    """A network that was opened."""

    @property
    def inputs(self) -> Sequence[Argument]: ...

    @property
    def outputs(self) -> Sequence[Argument]: ...

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Values]) -> list[Values]:
        """Return outputs, in the order of their names. Whatever the network raises passes."""


class OpenSession(Protocol):
    """A way to open a network: here, or where it can be killed."""

    def __call__(self, data: bytes, weights: Mapping[str, bytes], device: str) -> Session:
        """`weights` are the contents of the files beside `data`, by name. Whatever ONNX Runtime raises passes."""


class OwnSession:
    """A session in this process."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = _arguments(session.get_inputs())
        self.outputs = _arguments(session.get_outputs())

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Values]) -> list[Values]:
        found = self._session.run(list(outputs), dict(inputs))
        return [values if isinstance(values, np.ndarray) else np.asarray(values, dtype=object) for values in found]


def open_here(data: bytes, weights: Mapping[str, bytes], device: str) -> Session:
    """Open a network in this process, which it can stop: for networks that are trusted."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # A model may name files that hold its weights; without this, those below the working directory would be read.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    # Threads that wait for the next run spin for 10 ms and more, on cores that the database and other requests need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights:
        options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(file) for file in weights.values()]
        )

    providers = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    elif device != "cpu":
        _log.warning("this ONNX Runtime has no CUDA: ONNX networks run on the CPU")
    return OwnSession(onnxruntime.InferenceSession(data, options, providers=providers))


def _arguments(found: Sequence[onnxruntime.NodeArg]) -> list[Argument]:
    return [
        Argument(argument.name, argument.type, None if argument.shape is None else tuple(argument.shape))
        for argument in found
    ]
