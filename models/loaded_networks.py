"""What a network of any kind is once it is read: how it takes its inputs, and how it is run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[Any]  # float32; what goes in may be float16
Layout = Literal["nchw", "nhwc"]
InputDtype = Literal["float32", "float16", "float64", "uint8"]
# Inputs -> the output, and (B,) float32 the squared error that is expected of it, of a network that says it.
Run = Callable[[Sequence[Vectors]], tuple[Vectors, Vectors | None]]
_LONGEST_SENTENCE = 500


class ArtifactError(ValueError):
    """The file is not a usable network; the message says why."""


class TrialFailed(ArtifactError):
    """The network raised an error in a trial run."""


class NetworkStopped(ArtifactError):
    """The network took too long or too much memory, and was stopped, or its process died."""


@dataclass(frozen=True)
class NetworkForm:
    """How a network is to be run. What is None, or empty, is as the file says, or the usual.

    `inputs` are the names of its inputs in the order in which they are given, `output` the one that is meant of
    several, `dtype` what its inputs are cast to, `layout` the order of an image's axes, `batch` the number of rows that
    it takes at a time.
    """

    inputs: tuple[str, ...] = ()
    output: str | None = None
    layout: Layout | None = None
    dtype: InputDtype | None = None
    batch: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what is known."""
        values = {"inputs": list(self.inputs), "output": self.output, "layout": self.layout, "dtype": self.dtype}
        return {name: value for name, value in (values | {"batch": self.batch}).items() if value}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "NetworkForm":
        return NetworkForm(**{**values, "inputs": tuple(values.get("inputs", ()))})


@dataclass(frozen=True)
class Input:
    """An input as the file declares it: its shape has None where it is free, and is None where it is not said."""

    name: str
    dtype: InputDtype = "float32"
    shape: tuple[int | None, ...] | None = None
    optional: bool = False

    @property
    def described(self) -> str:
        """The input and its shape, for a sentence."""
        return f"{self.name!r} {shape_text(self.shape)}" if self.shape is not None else repr(self.name)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that can be run: `run` takes one (B, ...) array for each of `inputs`, in this order, and casts it.

    `form` says how it is run. `name` and `config` are set when it is one of our own.
    """

    run: Run
    inputs: tuple[Input, ...]
    form: NetworkForm = field(default_factory=NetworkForm)
    name: str | None = None
    config: dict[str, Any] | None = None

    def in_batches_of(self, batch: int) -> "LoadedNetwork":
        """Return the network such that it is only ever given so many rows at a time."""
        return replace(self, run=_in_batches(self.run, batch), form=replace(self.form, batch=batch))


def _in_batches(run: Run, batch: int) -> Run:
    """Return `run` in parts of `batch` rows; what the last one lacks is filled with its last row, and cut off again."""

    def run_in_parts(inputs: Sequence[Vectors]) -> tuple[Vectors, None]:
        outputs = []
        for start in range(0, len(inputs[0]), batch):
            rows = min(batch, len(inputs[0]) - start)
            filled = np.minimum(np.arange(start, start + batch), start + rows - 1)
            output, _ = run([values[filled] for values in inputs])
            output = output[None] if batch == 1 and output.ndim == 1 else output
            if len(output) != batch:
                raise ArtifactError(f"The network gives {len(output)} outputs for the {batch} rows that it takes.")
            outputs.append(output[:rows])
        return np.concatenate(outputs), None

    return run_in_parts


def arranged_inputs(found: Sequence[Input], wanted: Sequence[str]) -> tuple[Input, ...]:
    """Return the inputs in the order that their names are wanted in; as they are when none is. Raises
    `ArtifactError`."""
    by_name = {declared.name: declared for declared in found}
    if not wanted:
        return tuple(found)
    if sorted(wanted) != sorted(by_name):
        raise ArtifactError(f"The network's inputs are {_names(list(by_name))}; the spec names {_names(list(wanted))}.")
    return tuple(by_name[name] for name in wanted)


def chosen_output(names: Sequence[str], wanted: str | None) -> int:
    """Return the position of the output that is meant. Raises `ArtifactError`."""
    if wanted is not None:
        if wanted not in names:
            raise ArtifactError(f"The network has no output {wanted!r}; it gives {_names(names)}.")
        return list(names).index(wanted)
    if len(names) != 1:
        raise ArtifactError(
            f"The network gives {len(names)} outputs ({_names(names)}); one was expected: name it in the spec, as"
            ' {"output": {"name": ...}}.'
        )
    return 0


def cast(values: Vectors, dtype: InputDtype) -> Vectors:
    """Return the values, contiguous, in the dtype; those of uint8 are rounded."""
    if dtype == "uint8" and values.dtype != np.uint8:
        values = np.clip(np.rint(values), 0, 255)
    return np.ascontiguousarray(values, dtype)


def check_dtype(found: str, wanted: InputDtype | None, name: str) -> InputDtype:
    """Return the dtype of an input by the file. Raises `ArtifactError` unless it can be given, and is what the spec
    wants."""
    for dtype in get_args(InputDtype):
        if dtype == found:
            if wanted not in (None, dtype):
                raise ArtifactError(f"The input {name!r} takes {found} by the file and {wanted} by the spec.")
            return dtype  # type: ignore[no-any-return]  # get_args says nothing of types
    raise ArtifactError(f"The input {name!r} takes {found}; it must be one of {', '.join(get_args(InputDtype))}.")


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape for a sentence: (batch, 3, ?, ?)."""
    first = ["batch" if length is None else str(length) for length in shape[:1]]
    return f"({', '.join([*first, *('?' if length is None else str(length) for length in shape[1:])])})"


def sentence_of(error: Exception) -> str:
    """Return what a library's error says, in one line: of TorchScript's the last line, where the reason stands."""
    text = str(error).split("Exception raised from")[0].strip()
    if "raceback of TorchScript" in text:
        text = text.splitlines()[-1]
    text = " ".join(text.split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    if " " not in text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= _LONGEST_SENTENCE else f"{text[:_LONGEST_SENTENCE]}..."


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown or "none"
