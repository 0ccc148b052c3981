"""Artifacts: each kind makes the round trip, and a network of other shapes is refused saying what was got."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from models.artifacts import ArtifactError, load_encoder, load_transformation_network, save_network
from models.backbones import ConvEncoder, SmallResNet
from models.precision import Precision
from models.transformation import Transformation
from tests.networks import PublicForm, torchscript_bytes, transformation
from tests.unit.models.artifact_files import Images, normal, onnx_bytes, onnx_encoder, onnx_matrix, onnx_sum

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.mark.parametrize("network", [ConvEncoder(4, 6), ConvEncoder(4, 6, last_relu=False), SmallResNet(4, 1, 6)])
def test_our_own_encoders_make_the_round_trip(network: nn.Module) -> None:
    network(torch.randn(8, 3, 8, 8))  # statistics unlike those of a fresh BatchNorm
    images = normal(5, 3, 8, 8)

    encode = load_encoder(save_network(network), output_dim=6, input_size=8)

    expected = network.eval()(torch.from_numpy(images)).detach().numpy()
    assert encode(images).dtype == np.float32
    assert np.allclose(encode(images), expected, atol=1e-5)
    assert np.allclose(np.concatenate([encode(images[i : i + 1]) for i in range(5)]), expected, atol=1e-5)


@pytest.mark.parametrize("trailing", [False, True])
def test_an_onnx_encoder_makes_the_round_trip(trailing: bool) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    data = onnx_encoder(weights, trailing)
    images = normal(4, 3, 8, 8)

    found = load_encoder(data, output_dim=5, input_size=8)(images)

    assert found.shape == (4, 5)
    assert np.allclose(found, np.einsum("bchw,dchw->bd", images, weights), atol=1e-3)


def test_an_encoder_exported_by_torch_makes_the_round_trip(tmp_path: Path) -> None:
    network = ConvEncoder(4, 6).eval()
    torch.onnx.export(
        network,
        (torch.randn(2, 3, 8, 8),),
        tmp_path / "encoder.onnx",
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    images = normal(5, 3, 8, 8)

    encode = load_encoder((tmp_path / "encoder.onnx").read_bytes(), output_dim=6, input_size=8)

    assert np.allclose(encode(images), network(torch.from_numpy(images)).detach().numpy(), atol=1e-5)


def test_a_torchscript_encoder_makes_the_round_trip_where_it_is_trusted() -> None:
    network = Images(5)
    data = torchscript_bytes(network)
    images = normal(4, 3, 8, 8)

    encode = load_encoder(data, output_dim=5, input_size=8, trust_torchscript=True)

    expected = network(torch.from_numpy(images)).detach().numpy()[:, :, 0, 0]
    assert np.allclose(encode(images), expected, atol=1e-5)
    with pytest.raises(ArtifactError, match="GALLERY_TRUST_TORCHSCRIPT"):
        load_encoder(data, output_dim=5, input_size=8)


def test_an_output_of_another_shape_is_refused_saying_what_was_got() -> None:
    data = onnx_encoder(normal(5, 3, 8, 8))

    with pytest.raises(ArtifactError, match=r"gave an output of shape \(2, 5\); \(2, 7\) is due"):
        load_encoder(data, output_dim=7, input_size=8)


def test_an_encoder_that_leaves_the_map_unpooled_is_refused() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    data = onnx_bytes(nodes, {"x": ["batch", 3, 8, 8]}, ["y"], {"w": normal(5, 3, 3, 3)})

    with pytest.raises(ArtifactError, match=r"\(2, 5, 6, 6\)"):
        load_encoder(data, output_dim=5, input_size=8)


def test_a_network_with_two_outputs_is_refused() -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]

    with pytest.raises(ArtifactError, match="gives 2 outputs"):
        load_encoder(onnx_bytes(nodes, {"x": ["b", 3, 8, 8]}, ["y", "z"]), output_dim=3, input_size=8)


def test_an_encoder_with_two_inputs_is_refused() -> None:
    with pytest.raises(ArtifactError, match="takes 2 inputs"):
        load_encoder(onnx_sum((normal(4, 3), normal(4, 3))), output_dim=3, input_size=8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    network = ConvEncoder(4, 6)
    nn.init.constant_(network.layers[0].weight, bad)  # type: ignore[arg-type]  # a Conv2d's
    script = Images(5)
    nn.init.constant_(script.features.weight, bad)

    with pytest.raises(ArtifactError, match="not finite"):
        load_encoder(save_network(network), output_dim=6, input_size=8)
    with pytest.raises(ArtifactError, match="not finite"):
        load_encoder(torchscript_bytes(script), output_dim=5, input_size=8, trust_torchscript=True)
    weight = np.full((3, 2), bad, np.float32)
    with pytest.raises(ArtifactError, match="not finite"):
        load_transformation_network(onnx_matrix(weight), from_dim=3, side_information_dim=None, to_dim=2)


@pytest.mark.parametrize("side_dim", [None, 5])
def test_our_own_transformation_makes_the_round_trip(side_dim: int | None) -> None:
    network = transformation(6, side_dim, 4, seed=1)
    embedding, side = normal(7, 6), None if side_dim is None else normal(7, side_dim)

    found = load_transformation_network(save_network(network), from_dim=6, side_information_dim=side_dim, to_dim=4)(
        embedding, side
    )

    inputs = [torch.from_numpy(values) if values is not None else None for values in (embedding, side)]
    assert np.allclose(found, network(*inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_errors_that_our_own_transformation_expects_make_the_round_trip(precision: Precision) -> None:
    network = Transformation(6, 5, 4, inner_dim=8, members=2, linear=True, error_head=True).eval()
    embedding, side = normal(7, 6), normal(7, 5)

    read = load_transformation_network(
        save_network(network), from_dim=6, side_information_dim=5, to_dim=4, precision=precision
    )
    output, expected = read.with_uncertainty(embedding, side)

    _, due = network.with_uncertainty(torch.from_numpy(embedding), torch.from_numpy(side))
    assert due is not None
    assert expected is not None
    assert np.allclose(expected, due.detach().numpy(), rtol=1e-4 if precision == "float32" else 0.05)
    assert np.array_equal(output, read(embedding, side))
    matrix = onnx_matrix(np.ones((6, 4), np.float32))
    foreign = load_transformation_network(matrix, from_dim=6, side_information_dim=5, to_dim=4)
    assert foreign.with_uncertainty(embedding, side)[1] is None


def test_our_own_transformation_without_side_information_ignores_what_is_stored() -> None:
    data = save_network(transformation(6, None, 4, seed=1))
    embedding = normal(3, 6)

    alone = load_transformation_network(data, from_dim=6, side_information_dim=None, to_dim=4)
    beside = load_transformation_network(data, from_dim=6, side_information_dim=9, to_dim=4)

    assert np.array_equal(alone(embedding, None), beside(embedding, normal(3, 9)))


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ((7, 5, 4), "from_dim is 6; 7 was declared"),
        ((6, 8, 4), "side_information_dim is 5; 8 was declared"),
        ((6, None, 4), "side_information_dim is 5; None was declared"),
        ((6, 5, 9), "to_dim is 4; 9 was declared"),
    ],
)
def test_dimensions_other_than_declared_are_refused(declared: tuple[int, int | None, int], sentence: str) -> None:
    from_dim, side_dim, to_dim = declared
    data = save_network(transformation(6, 5, 4, seed=1))

    with pytest.raises(ArtifactError, match=sentence):
        load_transformation_network(data, from_dim=from_dim, side_information_dim=side_dim, to_dim=to_dim)


def test_an_onnx_transformation_of_two_inputs_gets_embedding_and_side_information() -> None:
    weights = (normal(6, 4), normal(5, 4))
    embedding, side = normal(3, 6), normal(3, 5)

    network = load_transformation_network(onnx_sum(weights), from_dim=6, side_information_dim=5, to_dim=4)

    assert np.allclose(network(embedding, side), embedding @ weights[0] + side @ weights[1], atol=1e-4)


def test_two_inputs_without_side_information_get_the_embedding_twice() -> None:
    weights = (normal(6, 4), normal(6, 4)[::-1].copy())
    embedding = normal(3, 6)

    network = load_transformation_network(onnx_sum(weights), from_dim=6, side_information_dim=None, to_dim=4)

    assert np.allclose(network(embedding, None), embedding @ (weights[0] + weights[1]), atol=1e-4)


@pytest.mark.parametrize("side_dim", [None, 5])
def test_one_input_gets_the_embedding_alone(side_dim: int | None) -> None:
    weight = normal(6, 4)
    embedding, side = normal(3, 6), None if side_dim is None else normal(3, side_dim)

    network = load_transformation_network(onnx_matrix(weight), from_dim=6, side_information_dim=side_dim, to_dim=4)

    assert np.allclose(network(embedding, side), embedding @ weight, atol=1e-4)


def test_the_public_form_of_the_paper_makes_the_round_trip() -> None:
    network = PublicForm(6, 5, 4)
    embedding, side = normal(3, 6), normal(3, 5)

    loaded = load_transformation_network(
        torchscript_bytes(network), from_dim=6, side_information_dim=5, to_dim=4, trust_torchscript=True
    )

    inputs = [torch.from_numpy(values)[:, :, None, None] for values in (embedding, side)]
    expected = network(*inputs).detach().numpy()[:, :, 0, 0]
    assert loaded(embedding, side).shape == (3, 4)
    assert np.allclose(loaded(embedding, side), expected, atol=1e-5)
    assert np.allclose(loaded(embedding[:1], side[:1]), expected[:1], atol=1e-5)


def test_the_public_form_in_onnx_makes_the_round_trip() -> None:
    weight = normal(4, 6, 1, 1)
    data = onnx_bytes([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": ["b", 6, 1, 1]}, ["y"], {"w": weight})

    network = load_transformation_network(data, from_dim=6, side_information_dim=None, to_dim=4)

    assert np.allclose(network(normal(3, 6), None), normal(3, 6) @ weight[:, :, 0, 0].T, atol=1e-4)


def test_a_transformation_that_fits_neither_form_is_refused_naming_both() -> None:
    scripted = torchscript_bytes(PublicForm(6, 5, 4))

    with pytest.raises(ArtifactError, match=r"inputs are 'x' \(batch, 6\); .* given \(batch, 9\)"):
        load_transformation_network(onnx_matrix(normal(6, 4)), from_dim=9, side_information_dim=None, to_dim=4)
    with pytest.raises(ArtifactError, match=r"Given \(B, D\): .* Given \(B, D, 1, 1\): "):
        load_transformation_network(scripted, from_dim=9, side_information_dim=5, to_dim=4, trust_torchscript=True)


def test_an_encoder_is_no_transformation_and_the_reverse() -> None:
    with pytest.raises(ArtifactError, match="a transformation was expected"):
        load_transformation_network(save_network(ConvEncoder(4, 6)), from_dim=6, side_information_dim=None, to_dim=6)
    with pytest.raises(ArtifactError, match="an encoder was expected"):
        load_encoder(save_network(transformation(6, None, 6, seed=0)), output_dim=6, input_size=8)
