"""Artifacts: each kind makes the round trip, and whatever cannot be used is refused with a sentence."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.artifacts import (
    ArtifactError,
    artifact_kind,
    load_encoder,
    load_transformation_network,
    read_config,
    save_network,
)
from models.backbones import ConvEncoder, SmallResNet
from models.transformation import Transformation, fold_batch_norm
from tests.networks import PublicForm, onnx_encoder_bytes, torchscript_bytes, transformation

Vectors = NDArray[np.float32]


def normal(*shape: int) -> Vectors:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def onnx_bytes(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: list[str],
    weights: dict[str, Vectors] | None = None,
    external: list[onnx.TensorProto] | None = None,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [*(numpy_helper.from_array(value, name) for name, value in (weights or {}).items()), *(external or [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_matrix(weight: Vectors, batch: Any = "batch") -> bytes:
    """(B, D) -> (B, D_to) by one matrix."""
    return onnx_bytes(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [batch, len(weight)]}, ["y"], {"w": weight}
    )


def onnx_sum(weights: tuple[Vectors, Vectors]) -> bytes:
    """(B, D), (B, S) -> (B, D_to): the sum of a matrix of each."""
    nodes = [
        helper.make_node("MatMul", ["embedding", "a"], ["first"]),
        helper.make_node("MatMul", ["side_information", "b"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["y"]),
    ]
    shapes = {"embedding": ["batch", len(weights[0])], "side_information": ["batch", len(weights[1])]}
    return onnx_bytes(nodes, shapes, ["y"], {"a": weights[0], "b": weights[1]})


class Images(nn.Module):
    """An encoder for TorchScript: (B, 3, H, W) -> (B, dim, 1, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, dim, 3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        return features.mean(dim=[2, 3], keepdim=True)


def rewritten_header(data: bytes, config: Any) -> bytes:
    """The same safetensors file with another configuration."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {"gallery_upgrade": config if isinstance(config, str) else json.dumps(config)}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]


# Encoders


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
    data = onnx_encoder_bytes(5, seed=0, trailing=trailing)
    images = normal(4, 3, 8, 8)

    found = load_encoder(data, output_dim=5, input_size=8)(images)

    weights = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
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
    data = onnx_encoder_bytes(5, seed=0)

    with pytest.raises(ArtifactError, match=r"gave an output of shape \(2, 5\); \(2, 7\) was declared"):
        load_encoder(data, output_dim=7, input_size=8)


def test_an_encoder_that_leaves_the_map_unpooled_is_refused() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    data = onnx_bytes(nodes, {"x": ["batch", 3, 8, 8]}, ["y"], {"w": normal(5, 3, 3, 3)})

    with pytest.raises(ArtifactError, match=r"\(2, 5, 6, 6\)"):
        load_encoder(data, output_dim=5, input_size=8)


def test_an_encoder_for_another_input_size_is_refused() -> None:
    with pytest.raises(ArtifactError, match="trial run on images of the declared shape failed"):
        load_encoder(onnx_encoder_bytes(5, seed=0), output_dim=5, input_size=16)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_frozen_batch_size_is_refused(batch: int) -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    data = onnx_bytes(nodes, {"x": [batch, 3, 4, 4]}, ["y"], {"w": normal(48, 5)})

    with pytest.raises(ArtifactError, match="trial run"):
        load_encoder(data, output_dim=5, input_size=4)


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
    with pytest.raises(ArtifactError, match="not finite"):
        weight = np.full((3, 2), bad, np.float32)
        load_transformation_network(onnx_matrix(weight), from_dim=3, side_information_dim=None, to_dim=2)


# Transformations


@pytest.mark.parametrize("side_dim", [None, 5])
def test_our_own_transformation_makes_the_round_trip(side_dim: int | None) -> None:
    network = transformation(6, side_dim, 4, seed=1)
    embedding, side = normal(7, 6), None if side_dim is None else normal(7, side_dim)

    found = load_transformation_network(save_network(network), from_dim=6, side_information_dim=side_dim, to_dim=4)(
        embedding, side
    )

    inputs = [torch.from_numpy(values) if values is not None else None for values in (embedding, side)]
    assert np.allclose(found, network(*inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


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
    with pytest.raises(ArtifactError, match=r"Given \(B, D\): .* Given \(B, D, 1, 1\): "):
        load_transformation_network(onnx_matrix(normal(6, 4)), from_dim=9, side_information_dim=None, to_dim=4)


def test_an_encoder_is_no_transformation_and_the_reverse() -> None:
    with pytest.raises(ArtifactError, match="a transformation was expected"):
        load_transformation_network(save_network(ConvEncoder(4, 6)), from_dim=6, side_information_dim=None, to_dim=6)
    with pytest.raises(ArtifactError, match="an encoder was expected"):
        load_encoder(save_network(transformation(6, None, 6, seed=0)), output_dim=6, input_size=8)


# Files that are not accepted


def pt2_bytes(tmp_path: Path) -> bytes:
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(1, 3),))
    torch.export.save(program, tmp_path / "network.pt2")
    return (tmp_path / "network.pt2").read_bytes()


def state_dict_bytes() -> bytes:
    stream = io.BytesIO()
    torch.save(nn.Linear(3, 2).state_dict(), stream)
    return stream.getvalue()


def test_pt2_torch_save_and_pickles_are_refused_even_where_torchscript_is_trusted(tmp_path: Path) -> None:
    pickles = [pickle.dumps({"a": 1}, protocol=protocol) for protocol in (2, 4, 5)]

    for data in (pt2_bytes(tmp_path), state_dict_bytes(), *pickles):
        with pytest.raises(ArtifactError, match="can run any code"):
            load_encoder(data, output_dim=2, input_size=8, trust_torchscript=True)


def test_kinds_are_told_apart_by_content() -> None:
    assert artifact_kind(save_network(ConvEncoder(4, 6))) == "safetensors"
    assert artifact_kind(onnx_matrix(normal(3, 2))) == "onnx"
    assert artifact_kind(torchscript_bytes(Images(3))) == "torchscript"


def test_a_safetensors_header_of_any_length_is_not_taken_for_a_pickle() -> None:
    kinds = set()
    for padding in range(64):
        metadata = {"gallery_upgrade": "{}", "padding": " " * 8 * padding}
        kinds.add(artifact_kind(safetensors.torch.save({"w": torch.zeros(1)}, metadata)))

    assert kinds == {"safetensors"}


@pytest.mark.parametrize("data", [b"", b"\x00", b"hello world, no network", b"PK\x03\x04rest", b"\x08\x08", b"\x80"])
def test_what_is_no_network_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        load_encoder(data, output_dim=2, input_size=8, trust_torchscript=True)


def test_an_ordinary_zip_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")

    with pytest.raises(ArtifactError, match="not accepted"):
        artifact_kind(stream.getvalue())


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "torchscript"])
def test_truncated_files_are_refused(kind: str) -> None:
    data = {
        "onnx": onnx_encoder_bytes(5, seed=0),
        "safetensors": save_network(ConvEncoder(4, 5)),
        "torchscript": torchscript_bytes(Images(5)),
    }[kind]

    for kept in (9, len(data) // 3, len(data) // 2, len(data) - 1):
        with pytest.raises(ArtifactError):
            load_encoder(data[:kept], output_dim=5, input_size=8, trust_torchscript=True)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([0, 1]), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_damaged_files_load_or_are_refused(which: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray([save_network(transformation(3, None, 2, seed=0)), onnx_matrix(normal(3, 2))][which])
    for position, value in changes:
        data[position % len(data)] = value

    try:
        network = load_transformation_network(bytes(data), from_dim=3, side_information_dim=None, to_dim=2)
        outcome = str(network(normal(2, 3), None).shape)
    except ArtifactError as error:
        outcome = str(error)

    assert outcome == "(2, 2)" or outcome.endswith(".") or ": " in outcome


@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin", "../weights.bin", "ABSOLUTE"])
@pytest.mark.parametrize("as_constant", [False, True])
def test_onnx_weights_in_other_files_are_never_read(
    location: str, as_constant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "working"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for path in (folder / "weights.bin", tmp_path / "weights.bin"):
        path.write_bytes(normal(3, 2).tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=str(folder / "weights.bin") if location == "ABSOLUTE" else location)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if as_constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    data = onnx_bytes(nodes, {"x": ["b", 3]}, ["y"], external=[] if as_constant else [tensor])

    with pytest.raises(ArtifactError, match="weights in other files"):
        load_transformation_network(data, from_dim=3, side_information_dim=None, to_dim=2)


def test_a_configuration_that_asks_for_huge_layers_is_refused_before_memory_is_taken() -> None:
    data = save_network(transformation(6, None, 4, seed=0))
    config = {"from_dim": 6, "side_information_dim": None, "to_dim": 4}

    for inner_dim, sentence in ((10**9, "at most 65536"), (60_000, "more weights than the file holds")):
        described = {"network": "Transformation", "config": {**config, "inner_dim": inner_dim}}
        with pytest.raises(ArtifactError, match=sentence):
            load_transformation_network(
                rewritten_header(data, described), from_dim=6, side_information_dim=None, to_dim=4
            )


@pytest.mark.parametrize(
    "config",
    [
        "not JSON",
        "[]",
        "[" * 100_000,
        {},
        {"network": "Transformation"},
        {"network": "Linear", "config": {}},
        {"network": ["ConvEncoder"], "config": {}},
        {"network": "ConvEncoder", "config": {}},
        {"network": "ConvEncoder", "config": {"width": 4, "embedding_dim": 6, "depth": 3}},
        {"network": "ConvEncoder", "config": {"width": -4, "embedding_dim": 6}},
        {"network": "ConvEncoder", "config": {"width": 0, "embedding_dim": 6}},
        {"network": "ConvEncoder", "config": {"width": "4", "embedding_dim": 6}},
        {"network": "ConvEncoder", "config": {"width": 4.0, "embedding_dim": 6}},
        {"network": "ConvEncoder", "config": {"width": None, "embedding_dim": 6}},
        {"network": "ConvEncoder", "config": {"width": 5, "embedding_dim": 6}},
        {"network": "SmallResNet", "config": {"width": 4, "blocks": 60_000, "embedding_dim": 6}},
        {"network": "SmallResNet", "config": {"width": 4, "blocks": 1, "embedding_dim": 6}},
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(config: Any) -> None:
    data = rewritten_header(save_network(ConvEncoder(4, 6)), config)

    with pytest.raises(ArtifactError):
        load_encoder(data, output_dim=6, input_size=8)


def test_safetensors_of_other_programs_are_refused() -> None:
    with pytest.raises(ArtifactError, match="does not name one of our own networks"):
        load_encoder(safetensors.torch.save({"w": torch.zeros(1)}), output_dim=6, input_size=8)


def test_half_precision_weights_are_accepted() -> None:
    network = transformation(6, None, 4, seed=0)
    data = save_network(network.half())

    found = load_transformation_network(data, from_dim=6, side_information_dim=None, to_dim=4)(normal(3, 6), None)

    assert np.allclose(found, network.float()(torch.from_numpy(normal(3, 6))).detach().numpy(), atol=1e-2)


def test_the_configuration_can_be_read_without_the_weights() -> None:
    network = Transformation(6, 5, 4, inner_dim=16)

    described = read_config(save_network(network))

    assert described == {"network": "Transformation", "config": network.config()}


def test_only_our_own_networks_as_built_can_be_saved() -> None:
    with pytest.raises(ArtifactError, match="Linear is not one of our own"):
        save_network(nn.Linear(2, 2))
    with pytest.raises(ArtifactError, match="folded"):
        save_network(fold_batch_norm(transformation(6, None, 4, seed=0)))
