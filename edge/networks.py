"""h and g as ONNX files, loaded by ONNX Runtime, and what they say of themselves in their metadata."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.errors import EdgeError
from models.durable import file_sha256

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """A loaded h or g. `digest` is the SHA-256 of its file; `about` what the file says: versions, dimensions, whether
    rows are to be scaled to unit norm (docs/edge.md)."""

    path: Path
    digest: str
    about: dict[str, str]
    _session: Any
    _inputs: tuple[tuple[str, int | None, int], ...]  # name, dimension where it is fixed, axes

    @property
    def needs_side_information(self) -> bool:
        return len(self._inputs) == 2

    def __call__(self, embedding: Vectors, side_information: Vectors | None) -> tuple[Vectors, Vectors | None]:
        """(B, D) and (B, S) | None, float32 -> (B, D_to) float32, and (B,) float32 the squared error that is expected
        of it, None from a network that does not say. Raises `EdgeError` for rows of another dimension."""
        given = {}
        for (name, dim, axes), values in zip(self._inputs, (embedding, side_information), strict=False):
            if values is None:
                raise EdgeError(f"{self.path} needs side-information, and there is none beside the embeddings.")
            if dim not in (None, values.shape[1]):
                raise EdgeError(f"{self.path} takes {name!r} of {dim} numbers; the rows have {values.shape[1]}.")
            given[name] = values.reshape(*values.shape, *[1] * (axes - 2))
        output, *more = self._session.run(None, given)
        found = np.ascontiguousarray(output.reshape(len(embedding), -1), np.float32)
        return found, more[0].reshape(-1).astype(np.float32) if more else None


def load_network(path: Path, threads: int) -> Network:
    """Return the network in a file; `threads` compute, 0 for all cores. Raises `EdgeError`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise EdgeError(
            f"{path} is not an ONNX file that ONNX Runtime can load ({_first_line(error)}). The service gives one:"
            " GET /v1/transformations/{id}/artifacts/h?format=onnx."
        ) from error
    inputs = [(one.name, one.shape) for one in session.get_inputs()]
    outputs = [one.name for one in session.get_outputs()]
    if len(inputs) not in (1, 2) or (len(outputs) != 1 and outputs[1:] != ["uncertainty"]):
        raise EdgeError(f"{path} is no h or g: it has the inputs {[name for name, _ in inputs]} and outputs {outputs}.")
    known = tuple((name, shape[1] if isinstance(shape[1], int) else None, len(shape)) for name, shape in inputs)
    return Network(path, file_sha256(path), dict(session.get_modelmeta().custom_metadata_map), session, known)


def is_normalizing(h: Network, asked: bool | None) -> bool:
    """Return whether h's rows are to be scaled to unit norm: as was asked, else as its file says.

    Raises `EdgeError` where neither says.
    """
    said = {"true": True, "false": False}.get(h.about.get("normalize", ""))
    if asked is None and said is None:
        raise EdgeError(
            f"{h.path} does not say whether the new version's embeddings have unit norm: give --normalize or"
            " --no-normalize."
        )
    if None not in (asked, said) and asked != said:
        raise EdgeError(f"{h.path} says normalize={h.about['normalize']}, which the option contradicts.")
    return bool(said if asked is None else asked)


def scaled_to_unit_norm(vectors: Vectors) -> Vectors:
    """Return (N, D) vectors with unit norm; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
