"""Artifacts that are crafted, damaged or not ours: a refusal with a sentence, no code run, no file read."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from models.artifact_kinds import artifact_kind
from models.artifacts import (
    ArtifactError,
    load_encoder,
    load_transformation_network,
    read_config,
    save_network,
)
from models.backbones import ConvEncoder
from models.precision import Precision
from models.transformation import Transformation, fold_batch_norm
from tests.networks import torchscript_bytes, transformation
from tests.unit.models.artifact_files import (
    Images,
    normal,
    onnx_bytes,
    onnx_encoder,
    onnx_matrix,
    pt2_bytes,
    rewritten_header,
    state_dict_bytes,
    typed_onnx,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


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
        "onnx": onnx_encoder(normal(5, 3, 8, 8)),
        "safetensors": save_network(ConvEncoder(4, 5)),
        "torchscript": torchscript_bytes(Images(5)),
    }[kind]

    for kept in (9, len(data) // 3, len(data) // 2, len(data) - 1):
        with pytest.raises(ArtifactError):
            load_encoder(data[:kept], output_dim=5, input_size=8, trust_torchscript=True)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([0, 1]), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_damaged_files_load_or_are_refused(which: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(onnx_matrix(normal(3, 2)) if which else save_network(transformation(3, None, 2, seed=0)))
    for position, value in changes:
        data[position % len(data)] = value

    try:
        network = load_transformation_network(bytes(data), from_dim=3, side_information_dim=None, to_dim=2)
        outcome = str(network(normal(2, 3), None).shape)
    except ArtifactError as error:
        outcome = str(error)

    assert outcome == "(2, 2)" or outcome[0].isupper()


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

    for inner_dim, sentence in ((10**9, "from 1 to 65536"), (60_000, "more weights than the file holds")):
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"members": 60_000}, "members = 60000; from 1 to 64 is accepted"),
        ({"members": 0}, "members = 0; from 1 to 64"),
        ({"members": 2}, "more weights than the file holds|weights do not fit"),
        ({"members": None}, "has members, a linear map, or both"),
        ({"members": None, "linear": True}, "weights do not fit"),
        ({"linear": True}, "weights do not fit"),
    ],
)
def test_a_transformation_of_parts_that_it_does_not_have_is_refused(
    changes: dict[str, Any], refusal: str, precision: Precision
) -> None:
    network = Transformation(6, None, 4, inner_dim=8)
    described = {"network": "Transformation", "config": network.config() | changes}
    data = rewritten_header(save_network(network), described)

    with pytest.raises(ArtifactError, match=refusal):
        load_transformation_network(data, from_dim=6, side_information_dim=None, to_dim=4, precision=precision)


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


@pytest.mark.parametrize("wrong", ["output", "uncertainty"])
def test_an_h_that_gives_strings_is_refused(wrong: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        *(
            helper.make_node("Cast", ["product"], [name], to=TensorProto.STRING if name == wrong else TensorProto.FLOAT)
            for name in ("output", "uncertainty")
        ),
    ]
    dtypes: dict[str, int] = {
        name: TensorProto.STRING if name == wrong else TensorProto.FLOAT for name in ("output", "uncertainty")
    }
    data = typed_onnx(nodes, {"x": (TensorProto.FLOAT, ["b", 3])}, dtypes, {"w": normal(3, 2)})

    with pytest.raises(ArtifactError, match=f"The output '{wrong}' is string; it must be one of float32"):
        load_transformation_network(data, from_dim=3, side_information_dim=None, to_dim=2)
