"""Networks as people export them: fixed batches, other dtypes, layouts and sizes, several outputs, weights in files of
their own. Each gives what the plain network gives."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from models.artifact_kinds import artifact_kind
from models.artifacts import (
    ArtifactError,
    NetworkForm,
    load_encoder,
    load_transformation_network,
    try_encoder,
    try_transformation_network,
)
from models.network_archives import pack_network, unpack_network
from models.preprocessing import BYTES
from tests.networks import torchscript_bytes
from tests.unit.models.artifact_files import (
    external_onnx,
    normal,
    onnx_bytes,
    onnx_encoder,
    onnx_matrix,
    pixels_onnx,
    typed_onnx,
    weights_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 5, 8, 9])
def test_a_batch_that_is_fixed_is_filled_and_run_as_often_as_it_takes(batch: int, count: int) -> None:
    data = pixels_onnx([batch, 3, 4, 4])
    images = normal(count, 3, 4, 4)

    form = try_encoder(data, output_dim=5, input_size=4)
    found = load_encoder(data, output_dim=5, input_size=4, form=form)(images)

    assert form.batch == batch
    assert np.allclose(found, images.reshape(count, -1) @ weights_of(data), atol=1e-4)


def test_a_network_that_fails_for_several_rows_is_run_one_by_one() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights: dict[str, Any] = {"shape": np.array([1, 48], np.int64), "w": normal(48, 5)}
    data = typed_onnx(nodes, {"x": (FLOAT, ["batch", 3, 4, 4])}, {"y": FLOAT}, weights)
    images = normal(3, 3, 4, 4)

    form = try_encoder(data, output_dim=5, input_size=4)
    found = load_encoder(data, output_dim=5, input_size=4, form=form)(images)

    assert form.batch == 1
    assert np.allclose(found, images.reshape(3, -1) @ weights["w"], atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "name", "tolerance"),
    [(TensorProto.FLOAT16, "float16", 0.1), (TensorProto.DOUBLE, "float64", 1e-4), (FLOAT, "float32", 1e-4)],
)
def test_the_dtype_of_the_file_is_given_and_taken(dtype: int, name: str, tolerance: float) -> None:
    data = pixels_onnx(["batch", 3, 4, 4], dtype)
    images = normal(5, 3, 4, 4)

    form = try_encoder(data, output_dim=5, input_size=4)
    found = load_encoder(data, output_dim=5, input_size=4, form=form)(images)

    assert form.dtype == name
    assert found.dtype == np.float32
    assert np.allclose(found, images.reshape(5, -1) @ weights_of(data), atol=tolerance)


def test_whole_pixels_are_given_as_uint8() -> None:
    data = pixels_onnx(["batch", 4, 4, 3], TensorProto.UINT8)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4)).astype(np.float32)

    form = try_encoder(data, output_dim=5, input_size=4, value_range=BYTES)
    found = load_encoder(data, output_dim=5, input_size=4, form=form)(images)

    assert (form.dtype, form.layout) == ("uint8", "nhwc")
    expected = images.transpose(0, 2, 3, 1).reshape(5, -1) @ weights_of(data)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("shape", "wanted", "layout"),
    [
        (["batch", 3, 8, 6], None, "nchw"),
        (["batch", 8, 6, 3], None, "nhwc"),
        ([5, 8, 6, 3], "nhwc", "nhwc"),
        (["batch", 1, 8, 6], None, "nchw"),
        (["batch", 8, 6, 1], None, "nhwc"),
    ],
)
def test_a_layout_and_a_size_that_the_shape_says_are_taken(shape: list[Any], wanted: Any, layout: str) -> None:
    data = pixels_onnx(shape)
    depth = 1 if 1 in shape else 3
    images = normal(4, depth, 8, 6)

    form = try_encoder(data, output_dim=5, input_size=(depth, 8, 6), form=NetworkForm(layout=wanted))
    found = load_encoder(data, output_dim=5, input_size=(depth, 8, 6), form=form)(images)

    given = images if layout == "nchw" else images.transpose(0, 2, 3, 1)
    assert form.layout == layout
    assert np.allclose(found, given.reshape(4, -1) @ weights_of(data), atol=1e-4)


def test_an_input_of_another_shape_is_refused_by_what_the_file_and_the_spec_say() -> None:
    with pytest.raises(ArtifactError, match=r"'images' \(batch, 3, 8, 8\) .* gives it, \(batch, 3, 16, 16\)"):
        try_encoder(onnx_encoder(normal(5, 3, 8, 8)), output_dim=5, input_size=16)
    with pytest.raises(ArtifactError, match=r"'images' \(batch, 8, 8, 3\) .* gives it, \(batch, 3, 8, 8\)"):
        try_encoder(pixels_onnx(["batch", 8, 8, 3]), output_dim=5, input_size=8, form=NetworkForm(layout="nchw"))
    with pytest.raises(ArtifactError, match=r"'images' takes float16 by the file and float32 by the spec"):
        try_encoder(
            pixels_onnx(["batch", 3, 8, 8], TensorProto.FLOAT16),
            output_dim=5,
            input_size=8,
            form=NetworkForm(dtype="float32"),
        )


def test_one_of_several_outputs_is_taken_by_its_name() -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Neg", ["pooled"], ["negative"]),
        helper.make_node("Shape", ["x"], ["whole"]),
    ]
    data = typed_onnx(
        nodes, {"x": (FLOAT, ["b", 3, 8, 8])}, {"pooled": FLOAT, "negative": FLOAT, "whole": TensorProto.INT64}
    )
    images = normal(4, 3, 8, 8)

    form = try_encoder(data, output_dim=3, input_size=8, form=NetworkForm(output="negative"))
    found = load_encoder(data, output_dim=3, input_size=8, form=form)(images)

    assert form.output == "negative"
    assert np.allclose(found, -images.mean(axis=(2, 3)), atol=1e-5)
    for output, sentence in ((None, "gives 3 outputs"), ("x", "no output 'x'"), ("whole", "'whole' is int64")):
        with pytest.raises(ArtifactError, match=sentence):
            try_encoder(data, output_dim=3, input_size=8, form=NetworkForm(output=output))


class TwoOutputs(nn.Module):
    """(B, 3, H, W) -> the channels' means and, under "maximum", their maxima; (B, D), (B, S) -> both."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"mean": images.mean(dim=[2, 3]), "maximum": images.amax(dim=[2, 3])}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = images.mean(dim=[2, 3])
        return self.features(pooled), pooled


def test_outputs_of_torchscript_are_taken_by_key_or_position() -> None:
    images = normal(4, 3, 8, 8)

    maximum = load_encoder(
        torchscript_bytes(TwoOutputs()),
        output_dim=3,
        input_size=8,
        trust_torchscript=True,
        form=NetworkForm(output="maximum"),
    )(images)
    pooled = load_encoder(
        torchscript_bytes(Pair()), output_dim=3, input_size=8, trust_torchscript=True, form=NetworkForm(output="1")
    )(images)

    assert np.allclose(maximum, images.max(axis=(2, 3)))
    assert np.allclose(pooled, images.mean(axis=(2, 3)), atol=1e-6)
    with pytest.raises(ArtifactError, match="gives 2 outputs"):
        try_encoder(torchscript_bytes(Pair()), output_dim=3, input_size=8, trust_torchscript=True)


def test_torchscript_in_float16_is_given_float16() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 4)

        def forward(self, embedding: Tensor) -> Tensor:
            mixed: Tensor = self.mix(embedding)
            return mixed

    network = Half()
    data = torchscript_bytes(network.half())
    rows = normal(7, 6)

    form = try_transformation_network(data, from_dim=6, side_information_dim=None, to_dim=4, trust_torchscript=True)
    found = load_transformation_network(
        data, from_dim=6, side_information_dim=None, to_dim=4, trust_torchscript=True, form=form
    )(rows, None)

    assert form.dtype == "float16"
    assert np.allclose(found, network.float()(torch.from_numpy(rows)).detach().numpy(), atol=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(TensorProto.FLOAT16, 0.05), (TensorProto.DOUBLE, 1e-4)])
@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("trailing", [[], [1, 1]])
def test_an_h_of_another_dtype_a_fixed_batch_or_a_named_output_is_run(
    dtype: int, tolerance: float, batch: Any, trailing: list[int]
) -> None:
    weight = normal(6, 5)
    nodes = [
        helper.make_node("Cast", ["embedding"], ["floats"], to=FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=dtype),
        helper.make_node("Neg", ["y"], ["other"]),
    ]
    data = typed_onnx(nodes, {"embedding": (dtype, [batch, 6, *trailing])}, {"other": dtype, "y": dtype}, {"w": weight})
    rows = normal(7, 6)
    dims: dict[str, Any] = {"from_dim": 6, "side_information_dim": None, "to_dim": 5}

    form = try_transformation_network(data, **dims, form=NetworkForm(output="y"))
    found = load_transformation_network(data, **dims, form=form)(rows, None)

    assert np.allclose(found, rows @ weight, atol=tolerance)


def test_inputs_of_an_h_are_given_by_their_names() -> None:
    nodes = [
        helper.make_node("MatMul", ["side", "b"], ["first"]),
        helper.make_node("MatMul", ["embedding", "a"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["y"]),
    ]
    weights = {"a": normal(6, 4), "b": normal(5, 4)}
    data = onnx_bytes(nodes, {"side": ["b", 5], "embedding": ["b", 6]}, ["y"], weights)
    dims: dict[str, Any] = {"from_dim": 6, "side_information_dim": 5, "to_dim": 4}
    rows, side = normal(3, 6), normal(3, 5)

    form = try_transformation_network(data, **dims, form=NetworkForm(("embedding", "side")))
    found = load_transformation_network(data, **dims, form=form)(rows, side)

    assert np.allclose(found, rows @ weights["a"] + side @ weights["b"], atol=1e-4)
    with pytest.raises(ArtifactError, match=r"'side' \(batch, 5\), 'embedding' \(batch, 6\); .* given \(batch, 6\)"):
        try_transformation_network(data, **dims)
    with pytest.raises(ArtifactError, match="inputs are 'side', 'embedding'; the spec names 'x'"):
        try_transformation_network(data, **dims, form=NetworkForm(("x",)))


def test_weights_in_files_of_their_own_are_read_from_those_that_came_with_the_network() -> None:
    matrices = {"model.onnx.data": normal(6, 4), "folder/more.bin": normal(6, 4)[::-1].copy()}
    network = external_onnx(matrices)
    files = {
        "model.onnx.data": matrices["model.onnx.data"].tobytes(),
        "more.bin": matrices["folder/more.bin"].tobytes(),
    }
    dims: dict[str, Any] = {"from_dim": 6, "side_information_dim": None, "to_dim": 4}
    rows = normal(3, 6)

    packed = pack_network({"model.onnx": network} | files)
    form = try_transformation_network(packed, **dims)
    found = load_transformation_network(packed, **dims, form=form)(rows, None)

    assert artifact_kind(packed) == "onnx"
    assert packed == pack_network({"more.bin": files["more.bin"], "model.onnx": network, **files})
    assert unpack_network(packed) == (network, files)
    assert np.allclose(found, rows @ sum(matrices.values()), atol=1e-4)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, r"weights in other files \('w.bin'\)"),
        ({"v.bin": b"x"}, r"weights in other files \('w.bin'\)"),
        ({"w.bin": b"short"}, "'w.bin' is too short for the weights 'w0'"),
        ({"w.bin": bytes(96), "v.bin": b"x"}, "keeps no weights in 'v.bin'"),
    ],
)
def test_weights_that_did_not_come_or_are_too_short_are_refused(files: dict[str, bytes], sentence: str) -> None:
    packed = pack_network({"model.onnx": external_onnx({"w.bin": normal(6, 4)}), **files})

    with pytest.raises(ArtifactError, match=sentence):
        try_transformation_network(packed, from_dim=6, side_information_dim=None, to_dim=4)


def test_several_files_without_one_network_are_refused_and_a_damaged_archive_too() -> None:
    packed = pack_network({"a.onnx": external_onnx({"w": normal(6, 4)}), "w": bytes(96)})

    with pytest.raises(ArtifactError, match="one is an ONNX network"):
        pack_network({"a": b"x", "b": b"y"})
    for damaged in (packed[:60], packed[:40] + b"\xff" * 20 + packed[60:]):
        with pytest.raises(ArtifactError):
            try_transformation_network(damaged, from_dim=6, side_information_dim=None, to_dim=4)


def test_an_export_of_torch_keeps_its_weights_in_another_file_and_is_read(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 300), nn.Linear(300, 5)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.randn(2, 3, 4, 4),),
            tmp_path / "model.onnx",
            dynamic_shapes=({0: "batch"},),
            external_data=True,
            verbose=False,
        )
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    images = normal(5, 3, 4, 4)

    found = load_encoder(pack_network(files), output_dim=5, input_size=4)(images)

    assert sorted(files) == ["model.onnx", "model.onnx.data"]
    assert np.allclose(found, network(torch.from_numpy(images)).detach().numpy(), atol=1e-5)


def test_a_network_that_gives_b_1_1_d_loses_the_axes_of_1() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=1),
    ]
    data = typed_onnx(nodes, {"x": (FLOAT, ["b", 8, 8, 3])}, {"y": FLOAT})
    images = normal(4, 3, 8, 8)

    form = try_encoder(data, output_dim=3, input_size=8)

    assert np.allclose(
        load_encoder(data, output_dim=3, input_size=8, form=form)(images), images.mean(axis=(2, 3)), atol=1e-5
    )


def test_a_matrix_of_the_usual_form_is_recorded_as_the_file_says_it() -> None:
    form = try_transformation_network(onnx_matrix(normal(6, 4)), from_dim=6, side_information_dim=None, to_dim=4)

    assert NetworkForm.from_json(form.to_json()) == form == NetworkForm(("x",), "y", None, "float32", None)
