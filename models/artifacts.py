"""Networks as files: `load_encoder` and `load_transformation_network` are the only ways in, and `try_encoder` and
`try_transformation_network` say beforehand whether what comes in can be used.

Accepted by content (`models.artifact_kinds`): safetensors of our own networks (`models.own_networks`), ONNX, and
TorchScript where the operator trusts it. The first two cannot run code, but an ONNX network may compute for ever:
`open_session` says where it runs, such as in a process that can be killed (`models.confined_networks`). `.pt2` and
pickles are never opened. Every load makes a trial run, so what it returns has the shapes that it was asked for; the
trial before (`models.trials`) also asks whether it is a function of one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.artifact_kinds import artifact_kind
from models.loaded_networks import (
    ArtifactError,
    LoadedNetwork,
    NetworkForm,
    NetworkStopped,
    TrialFailed,
    Vectors,
    sentence_of,
    shape_text,
)
from models.onnx_networks import load_onnx
from models.onnx_sessions import OpenSession, open_here
from models.own_networks import load_own, read_config, read_network, run_network, save_network
from models.precision import Precision
from models.preprocessing import UNIT, ValueRange
from models.torchscript_networks import load_torchscript
from models.transformation import Transformation
from models.trials import TRIAL_ROWS, Trial, check_function_of_rows, check_layout, run_trial, trial_images

__all__ = ["ArtifactError", "NetworkForm", "Vectors", "read_config", "save_network"]

Encoder = Callable[[Vectors], Vectors]
# An edge of three channels, or (depth, height, width).
InputSize = int | tuple[int, int, int]

_Found = TypeVar("_Found")
_LOADED_TRIAL_ROWS = (2, 1)
AS_THE_FILE_SAYS = NetworkForm()
_FORMS: tuple[tuple[str, tuple[int, ...]], ...] = (("(B, D)", ()), ("(B, D, 1, 1)", (1, 1)))


@dataclass(frozen=True)
class TransformationNetwork:
    """A loaded h or g: (φ (B, D), ψ (B, S) | None), float16 or float32 -> (B, D_to) float32."""

    _run: Callable[[Vectors, Vectors | None], tuple[Vectors, Vectors | None]]

    def __call__(self, embedding: Vectors, side_information: Vectors | None) -> Vectors:
        return self._run(embedding, side_information)[0]

    def with_uncertainty(
        self, embedding: Vectors, side_information: Vectors | None
    ) -> tuple[Vectors, NDArray[np.float32] | None]:
        """Return the output, and (B,) the squared error that is expected of it; None from a network that does not
        say."""
        return self._run(embedding, side_information)


def load_encoder(
    data: bytes,
    *,
    output_dim: int,
    input_size: InputSize,
    device: str = "cpu",
    trust_torchscript: bool = False,
    form: NetworkForm = AS_THE_FILE_SAYS,
    open_session: OpenSession = open_here,
) -> Encoder:
    """Return a callable (B, depth, H, W) float32 -> (B, output_dim) float32, after a trial run. Raises `ArtifactError`.

    It gives the network its images in the layout, the dtype and the numbers of rows that the file or `form` says.
    Outputs of the form (B, D, 1, 1) or (B, 1, 1, D) lose the axes of 1.
    """
    image = _image_shape(input_size)
    loaded = _load_encoder(data, image, device, trust_torchscript, form, open_session)
    encode = _encoder(loaded)
    for rows in _LOADED_TRIAL_ROWS:
        run_trial(lambda inputs: encode(inputs[0]), [trial_images(rows, image, UNIT)], output_dim)
    return encode


def try_encoder(
    data: bytes,
    *,
    output_dim: int,
    input_size: InputSize,
    trust_torchscript: bool = False,
    form: NetworkForm = AS_THE_FILE_SAYS,
    value_range: ValueRange = UNIT,
    open_session: OpenSession = open_here,
) -> NetworkForm:
    """Return how an encoder is to be run, if it gives each image a vector of its own that does not depend on the others
    in a batch. Raises `ArtifactError`, saying what is wrong."""
    image = _image_shape(input_size)
    loaded = _load_encoder(data, image, "cpu", trust_torchscript, form, open_session)

    def trial_of(network: LoadedNetwork) -> Trial:
        encode = _encoder(network)
        return lambda inputs: encode(inputs[0])

    return _tried(loaded, trial_of, [trial_images(TRIAL_ROWS, image, value_range)], output_dim).form


def load_transformation_network(  # noqa: PLR0913 - what a transformation is declared with, and where it runs
    data: bytes,
    *,
    from_dim: int,
    side_information_dim: int | None,
    to_dim: int,
    device: str = "cpu",
    trust_torchscript: bool = False,
    precision: Precision = "float32",
    form: NetworkForm = AS_THE_FILE_SAYS,
    open_session: OpenSession = open_here,
) -> TransformationNetwork:
    """Return ((B, from_dim), (B, side_information_dim) | None) -> (B, to_dim) float32, after a trial run.

    Inputs are float16 or float32. One of our own networks computes in `precision`, if its outputs then point where
    those in float32 do (cosine at least 0.9999 in every row of a trial); foreign networks compute as their file says.

    A foreign network may take (B, D) or the paper's public form (B, D, 1, 1): the file says it, or the trial finds
    which. Of one input it gets the embedding; of two, embedding and side-information in this order unless `form` names
    them in another, or without side-information the embedding twice, as in the paper's code. A second output of an ONNX
    file, named `uncertainty`, is the error that it expects. Raises `ArtifactError`.
    """
    dims = _Dims(from_dim, side_information_dim, to_dim)
    loaded = _load_transformation(data, dims, device, trust_torchscript, precision, form, open_session)

    def light(network: TransformationNetwork) -> TransformationNetwork:
        for rows in _LOADED_TRIAL_ROWS:
            run_trial(_trial_of(network), dims.rows(rows), to_dim)
        return network

    return _in_a_form(loaded, dims, lambda trailing: light(_bind(loaded, trailing)))


def try_transformation_network(
    data: bytes,
    *,
    from_dim: int,
    side_information_dim: int | None,
    to_dim: int,
    trust_torchscript: bool = False,
    form: NetworkForm = AS_THE_FILE_SAYS,
    open_session: OpenSession = open_here,
) -> NetworkForm:
    """Return how an h or g is to be run, if it gives each row a vector of its own that does not depend on the others in
    a batch. Raises `ArtifactError`, saying what is wrong."""
    dims = _Dims(from_dim, side_information_dim, to_dim)
    loaded = _load_transformation(data, dims, "cpu", trust_torchscript, "float32", form, open_session)

    def thorough(trailing: tuple[int, ...]) -> NetworkForm:
        def trial_of(network: LoadedNetwork) -> Trial:
            return _trial_of(_bind(network, trailing))

        return _tried(loaded, trial_of, dims.rows(TRIAL_ROWS), to_dim).form

    return _in_a_form(loaded, dims, thorough)


def load_linear_map(data: bytes, device: str = "cpu") -> TransformationNetwork | None:
    """Return the linear map that stands beside h in one of our own networks, in float32; None where there is none.

    Raises `ArtifactError`.
    """
    if artifact_kind(data) != "safetensors":
        return None
    network, _, _ = read_network(data)
    alone = network.linear_alone() if isinstance(network, Transformation) else None
    if alone is None:
        return None
    run = run_network(alone, device)
    return TransformationNetwork(lambda embedding, side: run([embedding, embedding if side is None else side]))


@dataclass(frozen=True)
class _Dims:
    """The dimensions that a transformation was declared with."""

    from_dim: int
    side_information_dim: int | None
    to_dim: int

    def rows(self, count: int) -> list[Vectors]:
        """Return (count, from_dim) and, where there is any, (count, side_information_dim) normal rows."""
        generator = np.random.default_rng(0)
        dims = [dim for dim in (self.from_dim, self.side_information_dim) if dim is not None]
        return [generator.standard_normal((count, dim), np.float32) for dim in dims]


def _load(
    data: bytes, device: str, trusted: bool, precision: Precision, form: NetworkForm, open_session: OpenSession
) -> LoadedNetwork:
    kind = artifact_kind(data)
    if kind == "torchscript" and not trusted:
        raise ArtifactError(
            "TorchScript is accepted only where the operator trusts it (GALLERY_TRUST_TORCHSCRIPT=1); export to ONNX."
        )
    try:
        if kind == "onnx":
            return load_onnx(data, device, form, open_session)
        if kind == "safetensors":
            return load_own(data, device, precision, form)
        return load_torchscript(data, device, form)
    except ArtifactError:
        raise
    except Exception as error:  # a damaged file may make its parser raise anything
        raise ArtifactError(f"The file cannot be loaded as {kind}: {sentence_of(error)}") from error


def _load_encoder(
    data: bytes,
    image: tuple[int, int, int],
    device: str,
    trusted: bool,
    form: NetworkForm,
    open_session: OpenSession,
) -> LoadedNetwork:
    """Return an encoder whose form says in which layout it takes images of (depth, H, W)."""
    loaded = _load(data, device, trusted, "float32", form, open_session)
    if loaded.name == "Transformation":
        raise ArtifactError("The file is a transformation (h or g); an encoder was expected.")
    needed = [declared for declared in loaded.inputs if not declared.optional]
    if len(needed) != 1:
        named = ", ".join(declared.described for declared in needed)
        raise ArtifactError(f"The network takes {len(needed)} inputs ({named}); an encoder takes one, the images.")
    layout = form.layout or "nchw"
    if needed[0].shape is not None:
        layout = check_layout(needed[0].shape, form.layout, image, needed[0].described)
    return replace(loaded, form=replace(loaded.form, layout=layout))


def _encoder(loaded: LoadedNetwork) -> Encoder:
    channels_last = loaded.form.layout == "nhwc"

    def encode(images: Vectors) -> Vectors:
        inputs = images.transpose(0, 2, 3, 1) if channels_last else images
        return _as_vectors(loaded.run([inputs])[0])

    return encode


def _load_transformation(
    data: bytes,
    dims: _Dims,
    device: str,
    trusted: bool,
    precision: Precision,
    form: NetworkForm,
    open_session: OpenSession,
) -> LoadedNetwork:
    loaded = _load(data, device, trusted, precision, form, open_session)
    needed = sum(not declared.optional for declared in loaded.inputs)
    if needed not in (1, 2) or len(loaded.inputs) == 0:
        raise ArtifactError(
            f"The network takes {needed} inputs; a transformation takes the embedding and, if at all, the"
            " side-information."
        )
    if loaded.form.dtype == "uint8":
        raise ArtifactError("The network takes uint8; embeddings are floats.")
    if loaded.config is None:
        return loaded
    if loaded.name != "Transformation":
        raise ArtifactError(f"The file is an encoder ({loaded.name}); a transformation was expected.")
    declared = {"from_dim": dims.from_dim, "side_information_dim": dims.side_information_dim, "to_dim": dims.to_dim}
    for name, expected in declared.items():
        found = loaded.config.get(name)
        ignores_it = name == "side_information_dim" and found is None  # trained without: whatever is stored is unused
        if found != expected and not ignores_it:
            raise ArtifactError(f"The transformation's {name} is {found}; {expected} was declared.")
    return loaded


def _in_a_form(loaded: LoadedNetwork, dims: _Dims, attempt: Callable[[tuple[int, ...]], _Found]) -> _Found:
    """Return what the attempt gives in the first form, (B, D) or (B, D, 1, 1), in which the network can be run."""
    given = [dims.from_dim, dims.from_dim if dims.side_information_dim is None else dims.side_information_dim]
    forms = [form for form in _FORMS if _takes_form(loaded, given, form[1])]
    if not forms:
        declared = ", ".join(one.described for one in loaded.inputs)
        due = ", ".join(shape_text((None, dim)) for dim in given[: len(loaded.inputs)])
        raise ArtifactError(f"The network's inputs are {declared}; by the versions' dimensions it is given {due}.")
    refusals = []
    for name, trailing in forms[:1] if loaded.config else forms:
        try:
            return attempt(trailing)
        except NetworkStopped:
            raise
        except TrialFailed as error:
            refusals.append(f"Given {name}: {error}")
        except ArtifactError as error:
            if name == forms[-1][0] and not refusals:
                raise
            refusals.append(f"Given {name}: {error}")
    raise ArtifactError(" ".join(refusals))


def _takes_form(loaded: LoadedNetwork, given: Sequence[int], trailing: tuple[int, ...]) -> bool:
    """Whether the inputs' declared shapes leave room for (B, D, *trailing)."""
    for declared, dim in zip(loaded.inputs, given, strict=False):
        due = (None, dim, *trailing)
        if declared.shape is not None and (
            len(declared.shape) != len(due)
            or any(length not in (None, wanted) for length, wanted in zip(declared.shape[1:], due[1:], strict=True))
        ):
            return False
    return True


def _bind(loaded: LoadedNetwork, trailing: tuple[int, ...]) -> TransformationNetwork:
    def run(embedding: Vectors, side_information: Vectors | None) -> tuple[Vectors, Vectors | None]:
        taken = [one for one in loaded.inputs if side_information is not None or not one.optional]
        inputs = [embedding, embedding if side_information is None else side_information][: len(taken)]
        output, uncertainty = loaded.run([values.reshape(*values.shape, *trailing) for values in inputs])
        return _as_vectors(output), uncertainty

    return TransformationNetwork(run)


def _trial_of(network: TransformationNetwork) -> Trial:
    return lambda inputs: network(inputs[0], inputs[1] if len(inputs) > 1 else None)


def _tried(
    loaded: LoadedNetwork, trial_of: Callable[[LoadedNetwork], Trial], inputs: Sequence[Vectors], dim: int
) -> LoadedNetwork:
    """Return the network, if it is a function of rows; one that fails for several at a time is given them one by
    one."""
    try:
        check_function_of_rows(trial_of(loaded), inputs, dim, loaded.form.dtype)
        return loaded
    except TrialFailed as failure:
        if loaded.config is not None or loaded.form.batch is not None:
            raise
        one_by_one = loaded.in_batches_of(1)
        try:
            check_function_of_rows(trial_of(one_by_one), inputs, dim, loaded.form.dtype)
        except TrialFailed:
            raise failure from None
        return one_by_one


def _image_shape(size: InputSize) -> tuple[int, int, int]:
    return (3, size, size) if isinstance(size, int) else size


def _as_vectors(output: Vectors) -> Vectors:
    """Remove axes of size 1 beyond the first, where one other is left: (B, D, 1, 1) -> (B, D)."""
    if output.ndim > 2 and sum(length != 1 for length in output.shape[1:]) <= 1:
        output = output.reshape(len(output), -1)
    return np.ascontiguousarray(output, np.float32)
