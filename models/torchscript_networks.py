"""TorchScript networks; reading one can run any code, so only what an operator trusts comes here."""

import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.loaded_networks import (
    ArtifactError,
    Input,
    InputDtype,
    LoadedNetwork,
    NetworkForm,
    Vectors,
    arranged_inputs,
    cast,
    check_dtype,
    chosen_output,
)
from models.own_networks import check_finite


def load_torchscript(data: bytes, device: str, form: NetworkForm) -> LoadedNetwork:
    """Return a TorchScript network, in eval mode. It takes what its weights are of, unless `form` says otherwise.

    Of several outputs, `form.output` is a key, a named tuple's field, or a position. Raises `ArtifactError`.
    """
    module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    check_finite(module)
    module = module.eval().to(device)
    dtype = form.dtype or _dtype(module)
    inputs = arranged_inputs(_inputs(module, dtype), form.inputs)

    def run(values: Sequence[Vectors]) -> tuple[Vectors, None]:
        given = {
            declared.name: torch.from_numpy(cast(each, dtype)).to(device)
            for declared, each in zip(inputs, values, strict=False)
        }
        with torch.inference_mode():
            output = _chosen(module(**given), form.output)
        return output.float().cpu().numpy(), None

    resolved = NetworkForm(tuple(declared.name for declared in inputs), form.output, form.layout, dtype, form.batch)
    loaded = LoadedNetwork(run, inputs, resolved)
    return loaded if form.batch is None else loaded.in_batches_of(form.batch)


def _dtype(module: nn.Module) -> InputDtype:
    found = next((weights.dtype for weights in module.state_dict().values() if weights.is_floating_point()), None)
    return "float32" if found is None else check_dtype(str(found).removeprefix("torch."), None, "of the network")


def _inputs(module: nn.Module, dtype: InputDtype) -> list[Input]:
    arguments = module.forward.schema.arguments[1:]  # type: ignore[attr-defined]  # a script's; without self
    tensors = [argument for argument in arguments if "Tensor" in str(argument.type)]
    if needed := [one.name for one in arguments if one not in tensors and not one.has_default_value()]:
        raise ArtifactError(f"The network takes {', '.join(needed)}, which is no tensor.")
    return [Input(one.name, dtype, optional=one.has_default_value()) for one in tensors]


def _chosen(output: object, wanted: str | None) -> Tensor:
    """Return the output that is meant. Raises `ArtifactError`."""
    if isinstance(output, dict):
        names, values = [str(key) for key in output], list(output.values())
    elif isinstance(output, tuple | list):
        values = list(output)
        names = list(getattr(output, "_fields", map(str, range(len(values)))))
    else:
        names, values = ["0"], [output]
    if wanted is not None and wanted.isdecimal() and wanted not in names and int(wanted) < len(names):
        wanted = names[int(wanted)]
    value = values[chosen_output(names, wanted)]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise ArtifactError(f"The network gives a {kind}; one tensor of floats was expected.")
    return value
