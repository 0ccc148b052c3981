"""Our own transformations as ONNX: ONNX Runtime's rows equal the network's own, whatever it is made of."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from models.artifacts import ArtifactError, load_transformation_network, save_network
from models.backbones import ConvEncoder
from models.onnx_export import transformation_as_onnx
from models.transformation import Transformation

FROM, SIDE, TO = 12, 7, 10
SHAPES: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "without side-information": {"side_information_dim": None},
    "members": {"members": 3},
    "members and a linear map": {"members": 2, "linear": True},
    "a linear map alone": {"members": None, "linear": True},
    "a linear map without side-information": {"members": None, "linear": True, "side_information_dim": None},
    "outputs of ReLUs": {"non_negative": True},
    "class means": {"classes": 5},
    "one class": {"classes": 1},
    "an error head": {"error_head": True},
    "an error head beside a linear map alone": {"members": None, "linear": True, "error_head": True},
    "everything": {"members": 2, "linear": True, "non_negative": True, "classes": 4, "error_head": True},
    "everything without side-information": {
        "members": 2,
        "linear": True,
        "non_negative": True,
        "classes": 4,
        "error_head": True,
        "side_information_dim": None,
    },
}


def drawn(shape: dict[str, Any]) -> Transformation:
    """Return a network of this shape whose every weight, statistic and share is drawn."""
    network = Transformation(**{"from_dim": FROM, "side_information_dim": SIDE, "to_dim": TO, "inner_dim": 24, **shape})
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()  # type: ignore[union-attr]  # BatchNorm as made here has them
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                module.weight.normal_()
                module.bias.normal_()
        if network.linear_map is not None:
            network.linear_map.share.fill_(0.7)
        if network.class_means is not None:
            network.class_means.means.normal_()
            network.class_means.temperature.fill_(1.7)
            network.class_means.none_distance.fill_(6.0)
            network.class_means.share.fill_(0.6)
    return network.eval()


def run_onnx(data: bytes, embedding: NDArray[np.float32], side: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    given = {"embedding": embedding, "side_information": side}
    found: list[NDArray[np.float32]] = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})
    return found


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_of_onnx_runtime_equal_those_of_the_network(name: str, rows: int) -> None:
    network = drawn(SHAPES[name])
    embedding, side = torch.randn(rows, FROM), torch.randn(rows, SIDE)

    outputs = run_onnx(transformation_as_onnx(save_network(network), {}), embedding.numpy(), side.numpy())

    with torch.inference_mode():
        expected, uncertainty = network.with_uncertainty(embedding, side)
    assert np.abs(outputs[0] - expected.numpy()).max() < 1e-4
    assert len(outputs) == (1 if uncertainty is None else 2)
    if uncertainty is not None:
        np.testing.assert_allclose(outputs[1], uncertainty.numpy(), rtol=1e-4)


def test_class_means_that_draw_every_item_have_no_finite_distance_to_none() -> None:
    network = drawn({"classes": 3})
    assert network.class_means is not None
    network.class_means.none_distance.fill_(torch.finfo(torch.float32).max)
    network.class_means.temperature.fill_(0.01)
    embedding, side = torch.randn(9, FROM), torch.randn(9, SIDE)

    outputs = run_onnx(transformation_as_onnx(save_network(network), {}), embedding.numpy(), side.numpy())

    with torch.inference_mode():
        assert np.abs(outputs[0] - network(embedding, side).numpy()).max() < 1e-4


def test_the_file_can_be_registered_again_and_says_what_error_it_expects() -> None:
    network = drawn(SHAPES["everything"])
    generator = np.random.default_rng(0)
    embedding, side = (generator.standard_normal((5, dim), np.float32) for dim in (FROM, SIDE))

    loaded = load_transformation_network(
        transformation_as_onnx(save_network(network), {}), from_dim=FROM, side_information_dim=SIDE, to_dim=TO
    )
    output, uncertainty = loaded.with_uncertainty(embedding, side)

    assert output.shape == (5, TO)
    assert uncertainty is not None
    assert uncertainty.shape == (5,)


def test_the_file_says_what_it_is_and_is_the_same_every_time() -> None:
    data = save_network(drawn({}))

    first, second = (transformation_as_onnx(data, {"from_version": "v1", "normalize": "true"}) for _ in range(2))

    model = onnx.load_from_string(first)
    onnx.checker.check_model(model)
    assert first == second
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "from_version": "v1",
        "normalize": "true",
        "from_dim": "12",
        "side_information_dim": "7",
        "to_dim": "10",
        "precision": "float32",
    }
    assert [entry.name for entry in model.graph.input] == ["embedding", "side_information"]
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_another_network_than_a_transformation_is_refused() -> None:
    with pytest.raises(ArtifactError, match="transformations alone"):
        transformation_as_onnx(save_network(ConvEncoder(4, 8, last_relu=False)), {})
