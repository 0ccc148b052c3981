"""What is no function of one row, or not of tensors that can be used, is refused by name of what is wrong with it."""

import random
from collections import namedtuple
from collections.abc import Sequence

import numpy as np
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from models.artifacts import ArtifactError, read_config, save_network, try_encoder, try_transformation_network
from models.backbones import ConvEncoder
from models.loaded_networks import Vectors
from models.preprocessing import BYTES, UNIT
from models.trials import check_function_of_rows, trial_images
from tests.networks import encoder_bytes, torchscript_bytes, transformation_bytes
from tests.unit.models.artifact_files import normal, onnx_bytes, rewritten_header, training_mode_onnx, typed_onnx

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
IN_TRAINING = "is BatchNorm in training mode, or Dropout active. Export after `model.eval..`"


@pytest.mark.parametrize("operator", ["BatchNormalization", "Dropout"])
def test_onnx_in_training_mode_is_refused(operator: str) -> None:
    encoder = training_mode_onnx(operator, ["batch", 3, 8, 8], 3)
    transformation = training_mode_onnx(operator, ["batch", 6], 6)

    with pytest.raises(ArtifactError, match=IN_TRAINING):
        try_encoder(encoder, output_dim=3, input_size=8)
    with pytest.raises(ArtifactError, match=IN_TRAINING):
        try_transformation_network(transformation, from_dim=6, side_information_dim=None, to_dim=6)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_does_not_hide_the_training_mode(batch: int) -> None:
    data = training_mode_onnx("BatchNormalization", [batch, 6], 6)

    with pytest.raises(ArtifactError, match=f"{IN_TRAINING}|the same vector for every input"):
        try_transformation_network(data, from_dim=6, side_information_dim=None, to_dim=6)


class AlwaysDropping(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(images, 0.3, True).mean(dim=[2, 3])


class OverTheBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean(dim=[2, 3])
        return pooled - pooled.mean(dim=0, keepdim=True)


class ByPlace(nn.Module):
    """Adds to a row what depends on its place in the batch."""

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean(dim=[2, 3])
        return pooled + torch.arange(len(pooled))[:, None]


class OneForAll(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=[2, 3]).mean(dim=0, keepdim=True)


class Constant(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=[2, 3]) * 0 + 3


class NotFinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=[2, 3]).log()


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (AlwaysDropping(), f"the same rows when it runs again: {IN_TRAINING}"),
        (OverTheBatch(), f"the same row in a batch of 5 than alone: {IN_TRAINING}"),
        (ByPlace(), f"the same row in a batch of 5 than alone: {IN_TRAINING}"),
        (OneForAll(), r"on 5 inputs gave an output of shape \(1, 3\)"),
        (Constant(), "gives the same vector for every input"),
        (NotFinite(), "not finite"),
    ],
)
def test_what_is_no_function_of_one_row_is_refused(network: nn.Module, sentence: str) -> None:
    with pytest.raises(ArtifactError, match=sentence):
        try_encoder(torchscript_bytes(network), output_dim=3, input_size=8, trust_torchscript=True)


def test_rounding_that_depends_on_the_batch_is_no_refusal() -> None:
    def run(inputs: Sequence[Vectors]) -> Vectors:
        return inputs[0] + 100 + np.float32(1e-4) * (len(inputs[0]) == 5)

    check_function_of_rows(run, [normal(5, 3)], 3, "float32")
    with pytest.raises(ArtifactError, match=IN_TRAINING):
        check_function_of_rows(lambda inputs: run(inputs) * len(inputs[0]), [normal(5, 3)], 3, "float32")


def test_our_own_networks_pass() -> None:
    torch.manual_seed(0)

    try_encoder(encoder_bytes(6, 1), output_dim=6, input_size=8)
    try_encoder(save_network(ConvEncoder(4, 6).eval()), output_dim=6, input_size=8)
    try_transformation_network(transformation_bytes(6, 5, 4, 7), from_dim=6, side_information_dim=5, to_dim=4)


def test_trial_images_are_as_a_preprocessing_gives_them() -> None:
    unit, whole = (trial_images(5, (3, 8, 6), value_range) for value_range in (UNIT, BYTES))

    assert unit.shape == whole.shape == (5, 3, 8, 6)
    assert abs(unit.mean()) < 1
    assert (whole == np.rint(whole)).all()
    assert 0 <= whole.min() < whole.max() <= 255


Refused = namedtuple("Refused", ["nodes", "inputs", "outputs", "domains", "sentence"], defaults=[(), ""])
_POOL = helper.make_node("GlobalAveragePool", ["x"], ["y"])
_IMAGES = {"x": (FLOAT, ["b", 3, 8, 8])}
_BRANCH = helper.make_graph(
    [helper.make_node("Identity", ["x"], ["z"])], "branch", [], [helper.make_tensor_value_info("z", FLOAT, None)]
)
REFUSED = {
    "int64": Refused([helper.make_node("Shape", ["x"], ["y"])], _IMAGES, {"y": INT64}, (), "'y' is int64"),
    "string": Refused([helper.make_node("Cast", ["x"], ["y"], to=STRING)], _IMAGES, {"y": STRING}, (), "'y' is string"),
    "two inputs": Refused(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        _IMAGES | {"z": (FLOAT, ["b", 3, 8, 8])},
        {"y": FLOAT},
        (),
        r"takes 2 inputs \('x' .*, 'z' .*\); an encoder takes one",
    ),
    "no input": Refused(
        [helper.make_node("Constant", [], ["y"], value_floats=[1.0])], {}, {"y": FLOAT}, (), "takes no input"
    ),
    "an int64 input": Refused(
        [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)],
        {"x": (INT64, ["b", 3, 8, 8])},
        {"y": FLOAT},
        (),
        "'x' takes int64; it must be one of float32, float16, float64, uint8",
    ),
    "an operator of its own": Refused(
        [helper.make_node("Magic", ["x"], ["y"], domain="org.example")],
        _IMAGES,
        {"y": FLOAT},
        ("org.example",),
        "an operator of its own, org.example.Magic",
    ),
    "an unknown operator": Refused(
        [helper.make_node("Magic", ["x"], ["y"])], _IMAGES, {"y": FLOAT}, (), "ONNX Runtime refuses the file: .*Magic"
    ),
    "control flow": Refused(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["whether"], to=TensorProto.BOOL),
            helper.make_node("If", ["whether"], ["y"], then_branch=_BRANCH, else_branch=_BRANCH),
        ],
        _IMAGES,
        {"y": FLOAT},
        (),
        r"has control flow \(If\)",
    ),
    "rank": Refused([_POOL], {"x": (FLOAT, ["b", 3, 8])}, {"y": FLOAT}, (), r"'x' \(batch, 3, 8\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_onnx_that_is_no_encoder_is_refused_with_a_sentence(name: str) -> None:
    refused = REFUSED[name]
    data = typed_onnx(refused.nodes, refused.inputs, refused.outputs, domains=refused.domains)

    with pytest.raises(ArtifactError, match=refused.sentence):
        try_encoder(data, output_dim=3, input_size=8)


def test_a_sequence_as_the_output_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "network",
        [helper.make_tensor_value_info("x", FLOAT, ["b", 3, 8, 8])],
        [helper.make_tensor_sequence_value_info("y", FLOAT, None)],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    with pytest.raises(ArtifactError, match="'y' is a seq"):
        try_encoder(bytes(data), output_dim=3, input_size=8)


def test_a_run_that_fails_says_what_the_library_said() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["y"])]
    onnx_network = onnx_bytes(nodes, {"x": ["b", "c", "h", "w"]}, ["y"], {"w": normal(5, 4, 3, 3)})

    class Mismatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(7, 4)

        def forward(self, images: Tensor) -> Tensor:
            mixed: Tensor = self.mix(images.mean(dim=[2, 3]))
            return mixed

    with pytest.raises(ArtifactError, match=r"failed: .*channels"):
        try_encoder(onnx_network, output_dim=5, input_size=8)
    with pytest.raises(ArtifactError, match="failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied"):
        try_encoder(torchscript_bytes(Mismatched()), output_dim=4, input_size=8, trust_torchscript=True)


@pytest.mark.parametrize(
    "dtype", ["float8_e8m0fnu", "float8_e4m3fn", "float8_e5m2", "int8", "bool", "complex64", "bfloat16"]
)
def test_weights_of_any_dtype_load_or_are_refused(dtype: str) -> None:
    data = encoder_bytes(6, 1)
    tensors = {name: value.to(getattr(torch, dtype)) for name, value in safetensors.torch.load(data).items()}
    rewritten = rewritten_header(safetensors.torch.save(tensors, {"": ""}), read_config(data))

    try:
        try_encoder(rewritten, output_dim=6, input_size=8)
        outcome = "Loaded"
    except ArtifactError as error:
        outcome = str(error)

    assert outcome[0].isupper()


def test_damaged_torchscript_loads_or_is_refused() -> None:
    whole = torchscript_bytes(Constant())
    chance = random.Random(0)
    for _ in range(30):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with pytest.raises(ArtifactError) as refusal:
            try_encoder(bytes(damaged), output_dim=3, input_size=8, trust_torchscript=True)
        assert str(refusal.value)[0].isupper()
