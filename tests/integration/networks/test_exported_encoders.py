"""Model versions whose networks take something else than RGB floats: registered by what the spec says, and asked."""

import json
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from onnx import TensorProto, helper
from PIL import Image

from models.images import decode_image
from tests.networks import encoder_bytes, image_bytes, onnx_encoder_bytes
from tests.problems import check_problem
from tests.registrations import post_transformation, post_version
from tests.scenario import create_gallery, post_images, search
from tests.unit.models.artifact_files import (
    external_onnx,
    normal,
    pixels_onnx,
    training_mode_onnx,
    typed_onnx,
    weights_of,
)

UNIT = {"mean": [0.5] * 3, "std": [0.25] * 3}


def pixels(seed: int) -> np.ndarray:
    """An image as (8, 8, 3), 0 to 255."""
    return np.asarray(decode_image(image_bytes(seed)), np.float32)


def normalized(values: np.ndarray) -> np.ndarray:
    return (values / 255 - 0.5) / 0.25


def grey(seed: int) -> np.ndarray:
    return np.asarray(decode_image(image_bytes(seed)).convert("L"), np.float32)[:, :, None]


def stretched(seed: int) -> np.ndarray:
    image = decode_image(image_bytes(seed)).resize((4, 12), Image.Resampling.BILINEAR)
    return normalized(np.asarray(image, np.float32))


# What φ takes, the spec, and the same image as (H, W, depth), in the order in which φ's weights see it.
TAKEN: dict[str, tuple[bytes, dict[str, Any], Any]] = {
    "nhwc": (
        pixels_onnx(["b", 8, 8, 3]),
        {"preprocessing": {"size": 8, **UNIT}},
        lambda seed: normalized(pixels(seed)),
    ),
    "nhwc that only the spec says": (
        pixels_onnx(["b", "h", "w", 3], count=192),
        {"preprocessing": {"size": 8, **UNIT}, "input": {"layout": "nhwc"}},
        lambda seed: normalized(pixels(seed)),
    ),
    "uint8": (pixels_onnx(["b", 8, 8, 3], TensorProto.UINT8), {"preprocessing": {"size": 8}}, pixels),
    "0 to 255": (
        pixels_onnx(["b", 8, 8, 3]),
        {"preprocessing": {"size": 8, "mean": [100, 110, 120], "std": [50, 50, 50]}, "input": {"range": [0, 255]}},
        lambda seed: (pixels(seed) - [100, 110, 120]) / 50,
    ),
    "bgr": (
        pixels_onnx(["b", 8, 8, 3]),
        {
            "preprocessing": {"size": 8, "mean": [100, 110, 120], "std": [50, 50, 50]},
            "input": {"range": [0, 255], "channels": "bgr"},
        },
        lambda seed: (pixels(seed)[:, :, ::-1] - [100, 110, 120]) / 50,
    ),
    "grey": (
        pixels_onnx(["b", 8, 8, 1]),
        {"preprocessing": {"size": 8, "mean": [0.5], "std": [0.25]}},
        lambda seed: normalized(grey(seed)),
    ),
    "not square, in float16, one by one": (
        pixels_onnx([1, 12, 4, 3], TensorProto.FLOAT16),
        {"preprocessing": {"size": [12, 4], **UNIT}},
        stretched,
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_network_gets_what_it_takes(client: TestClient, name: str) -> None:
    phi, spec, image = TAKEN[name]

    answer = post_version(client, "v", phi, embedding_dim=5, **spec)
    assert answer.status_code == 201, answer.text
    create_gallery(client, version="v", dtype="float32")
    post_images(client, range(3))

    expected = image(2).reshape(1, -1) @ weights_of(phi)
    found = client.post("/v1/galleries/g/search/vectors", json={"vectors": expected.tolist(), "k": 1}).json()
    nearest = found["neighbors"][0][0]
    assert nearest["id"] == "image-2.png"
    assert nearest["distance"] < 2e-3 * np.linalg.norm(expected)
    assert search(client, 2)["neighbors"][0]["id"] == "image-2.png"
    assert client.get("/v1/model-versions/v").json() == answer.json()


def test_what_the_files_say_is_shown(client: TestClient) -> None:
    two = typed_onnx(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("ReduceMax", ["x"], ["most"], axes=[1, 2], keepdims=0),
        ],
        {"x": (TensorProto.FLOAT, [4, 8, 8, 3])},
        {"mean": TensorProto.FLOAT, "most": TensorProto.FLOAT},
    )

    view = post_version(
        client,
        "v",
        two,
        two,
        embedding_dim=3,
        side_information_dim=3,
        output={"name": "mean"},
        side_information_output={"name": "most"},
    ).json()

    taken = {"layout": "nhwc", "channels": "rgb", "dtype": "float32", "range": [0, 1], "name": "x", "batch": 4}
    assert view["embedding_model_form"] == {"input": taken, "output": "mean"}
    assert view["side_information_model_form"] == {"input": taken, "output": "most"}


REFUSED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "values of 0 to 255": (
        onnx_encoder_bytes(6, 1),
        {"preprocessing": {"size": 8, "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}},
        "you gave 0-255 values",
    ),
    "values of 0 to 1": (
        onnx_encoder_bytes(6, 1),
        {"preprocessing": {"size": 8, **UNIT}, "input": {"range": [0, 255]}},
        "you gave 0-1 values",
    ),
    "no mean": (onnx_encoder_bytes(6, 1), {"preprocessing": {"size": 8}}, "needs mean, std"),
    "mean of uint8": (
        pixels_onnx(["b", 8, 8, 3], TensorProto.UINT8, dim=6),
        {"preprocessing": {"size": 8, **UNIT}},
        "leave mean and std out",
    ),
    "another range": (
        onnx_encoder_bytes(6, 1),
        {"preprocessing": {"size": 8, **UNIT}, "input": {"range": [-1, 1]}},
        "must be [0, 1] or [0, 255]",
    ),
    "no such layout": (onnx_encoder_bytes(6, 1), {"input": {"layout": "chwn"}}, "input.layout"),
    "three edges": (onnx_encoder_bytes(6, 1), {"preprocessing": {"size": [8, 8, 8], **UNIT}}, "size"),
    "no such input": (onnx_encoder_bytes(6, 1), {"input": {"name": "x"}}, "inputs are 'images'; the spec names 'x'"),
    "training mode": (
        training_mode_onnx("BatchNormalization", ["b", 3, 8, 8], 3),
        {"embedding_dim": 3},
        "is BatchNorm in training mode, or Dropout active? Export after",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_sentence(client: TestClient, name: str) -> None:
    phi, spec, sentence = REFUSED[name]

    answer = post_version(client, "v", phi, **spec)

    check_problem(answer, 422, sentence)
    assert client.get("/v1/model-versions").json()["items"] == []


def test_a_psi_in_training_mode_is_refused_by_its_part(client: TestClient) -> None:
    psi = training_mode_onnx("Dropout", ["b", 3, 8, 8], 3)

    answer = post_version(client, "v", encoder_bytes(6, 1), psi, side_information_dim=3)

    check_problem(answer, 422, "side_information_model: The network gives other values")


def test_h_and_g_in_training_mode_are_refused_by_their_part(client: TestClient) -> None:
    for name in ("v1", "v2"):
        post_version(client, name, encoder_bytes(6, 1), encoder_bytes(6, 2), side_information_dim=6)
    sound = typed_onnx(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["b", 6])},
        {"y": TensorProto.FLOAT},
        {"w": normal(6, 6)},
    )
    training = training_mode_onnx("Dropout", ["b", 6], 6)

    check_problem(post_transformation(client, "v1", "v2", training), 422, "h: The network gives other values")
    check_problem(post_transformation(client, "v1", "v2", sound, training), 422, "g: The network gives other values")
    assert post_transformation(client, "v1", "v2", sound, sound).status_code == 201


def test_weights_come_in_further_files_of_the_same_part(client: TestClient) -> None:
    for name in ("v1", "v2"):
        post_version(client, name, encoder_bytes(6, 1))
    matrix = normal(6, 6)
    files = [
        ("h", ("h.onnx", external_onnx({"h.onnx.data": matrix}))),
        ("h", ("h.onnx.data", matrix.tobytes())),
    ]

    answer = client.post("/v1/transformations", data={"from_version": "v1", "to_version": "v2"}, files=files)
    alone = client.post("/v1/transformations", data={"from_version": "v1", "to_version": "v2"}, files=files[:1])

    assert answer.status_code == 201, answer.text
    assert answer.json()["h_kind"] == "onnx"
    check_problem(alone, 422, "h: The ONNX file keeps weights in other files ('h.onnx.data')")


def test_one_output_of_an_h_is_named_in_the_spec(client: TestClient) -> None:
    for name in ("v1", "v2"):
        post_version(client, name, encoder_bytes(6, 1))
    h = typed_onnx(
        [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])],
        {"x": (TensorProto.FLOAT, [3, 6])},
        {"y": TensorProto.FLOAT, "z": TensorProto.FLOAT},
    )
    data = {"from_version": "v1", "to_version": "v2"}
    spec = ("spec.json", json.dumps({"h": {"output": {"name": "z"}}}).encode(), "application/json")

    unnamed = client.post("/v1/transformations", data=data, files={"h": h})
    named = client.post("/v1/transformations", data=data, files={"h": ("h", h), "spec": spec})

    check_problem(unnamed, 422, "gives 2 outputs ('y', 'z')")
    assert named.json()["architecture"]["h"]["form"] == {
        "inputs": ["x"],
        "output": "z",
        "dtype": "float32",
        "batch": 3,
    }
