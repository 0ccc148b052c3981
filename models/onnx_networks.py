"""ONNX networks, as ONNX Runtime runs them."""

import re
from collections.abc import Mapping, Sequence

from models.loaded_networks import (
    ArtifactError,
    Input,
    LoadedNetwork,
    NetworkForm,
    NetworkStopped,
    Vectors,
    arranged_inputs,
    cast,
    check_dtype,
    chosen_output,
    sentence_of,
)
from models.network_archives import unpack_network
from models.onnx_graphs import read_graph, weights_beside
from models.onnx_sessions import Argument, OpenSession, Session

_UNCERTAINTY = "uncertainty"
_DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's words; its others are numpy's
_OUTPUTS = ("float32", "float16", "float64")


def load_onnx(data: bytes, device: str, form: NetworkForm, open_session: OpenSession) -> LoadedNetwork:
    """Return an ONNX network; `data` is its file, or an archive with its weights beside it. A second output that is
    named `uncertainty` is the squared error that an h expects. Raises `ArtifactError`."""
    network, files = unpack_network(data)
    session = _session(network, weights_beside(read_graph(network), files), device, open_session)
    inputs = arranged_inputs([_input(argument, form) for argument in session.inputs], form.inputs)
    if not inputs:
        raise ArtifactError("The network takes no input.")
    names = [found.name for found in session.outputs]
    if names[1:] == [_UNCERTAINTY] and form.output in (None, names[0]):
        wanted = names
    else:
        wanted = [names[chosen_output(names, form.output)]]
    for name in wanted:
        _check_output(session.outputs[names.index(name)])

    def run(values: Sequence[Vectors]) -> tuple[Vectors, Vectors | None]:
        given = {declared.name: cast(each, declared.dtype) for declared, each in zip(inputs, values, strict=True)}
        output, *uncertainty = session.run(wanted, given)
        return output, uncertainty[0].reshape(len(output)) if uncertainty else None

    resolved = NetworkForm(
        tuple(declared.name for declared in inputs), wanted[0], form.layout, inputs[0].dtype, form.batch
    )
    loaded = LoadedNetwork(run, inputs, resolved)
    batch = _fixed_batch(inputs) or form.batch
    return loaded if batch is None else loaded.in_batches_of(batch)


def _session(data: bytes, weights: Mapping[str, bytes], device: str, open_session: OpenSession) -> Session:
    try:
        return open_session(data, weights, device)
    except NetworkStopped:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ArtifactError(f"ONNX Runtime refuses the file: {sentence_of(error)}") from error


def _input(argument: Argument, form: NetworkForm) -> Input:
    """Return an input as it is declared; a network of unknown rank has no shape."""
    dtype = check_dtype(_dtype(argument, "input"), form.dtype, argument.name)
    shape = tuple(length if isinstance(length, int) and length > 0 else None for length in argument.shape or ())
    return Input(argument.name, dtype, shape or None)


def _check_output(output: Argument) -> None:
    found = _dtype(output, "output")
    if found not in _OUTPUTS:
        raise ArtifactError(f"The output {output.name!r} is {found}; it must be one of {', '.join(_OUTPUTS)}.")


def _dtype(argument: Argument, what: str) -> str:
    """Return numpy's name of a tensor's dtype. Raises `ArtifactError` for what is no tensor."""
    tensor = re.fullmatch(r"tensor\((\w+)\)", argument.type)
    if tensor is None:
        raise ArtifactError(f"The {what} {argument.name!r} is a {argument.type}; one tensor was expected.")
    return _DTYPES.get(tensor[1], tensor[1])


def _fixed_batch(inputs: Sequence[Input]) -> int | None:
    """Return the number of rows that the network takes at a time, None if any. Raises `ArtifactError`."""
    batches = {declared.shape[0] for declared in inputs if declared.shape is not None} - {None}
    if len(batches) > 1:
        shapes = ", ".join(declared.described for declared in inputs)
        raise ArtifactError(f"The inputs take different numbers of rows: {shapes}.")
    return next(iter(batches), None)
