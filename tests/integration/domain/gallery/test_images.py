"""Images of every kind: unusual ones are converted, and bad ones refused alone."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor, nn

from tests.bad_files import BAD_FILES
from tests.networks import PREPROCESSING, image_bytes, torchscript_bytes
from tests.problems import check_problem
from tests.scenario import create_gallery


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_alone_is_422_and_stores_nothing(gallery: TestClient, name: str) -> None:
    answer = gallery.post("/v1/galleries/g/images", files=[("files", ("x.png", BAD_FILES[name]))])

    check_problem(answer, 422)
    assert answer.json()["errors"][0]["id"] == "x.png"
    assert gallery.get("/v1/galleries/g").json() | {"created_at": 0} == gallery.get("/v1/galleries/g").json() | {
        "items": 0,
        "revision": 0,
        "created_at": 0,
    }


def test_bad_files_are_rejected_alone_among_good_ones(gallery: TestClient) -> None:
    files = [("files", (name, data)) for name, data in BAD_FILES.items()]
    files.insert(2, ("files", ("good.png", image_bytes(5))))

    results = gallery.post("/v1/galleries/g/images", files=files).json()["results"]

    assert [result["id"] for result in results] == [name for _, (name, _) in files]
    assert [result["id"] for result in results if result["status"] == "created"] == ["good.png"]
    assert all(result["error"] for result in results if result["status"] == "rejected")
    assert gallery.get("/v1/galleries/g").json()["items"] == 1


UNUSUAL = {
    "cmyk.jpg": saved(Image.new("CMYK", (20, 10), (10, 20, 30, 40)), "JPEG"),
    "palette.png": saved(Image.new("P", (20, 10), 3), "PNG"),
    "alpha.png": saved(Image.new("RGBA", (20, 10), (255, 0, 0, 0)), "PNG"),
    "sixteen.png": saved(Image.fromarray(np.full((10, 20), 40_000, np.uint16)), "PNG"),
    "one-bit.png": saved(Image.new("1", (20, 10), 1), "PNG"),
    "animated.gif": saved(
        Image.new("RGB", (20, 10), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (20, 10), "blue")]
    ),
    "photo.webp": saved(Image.new("RGB", (20, 10), "green"), "WEBP"),
}


def test_unusual_images_are_converted(gallery: TestClient) -> None:
    files = [("files", (name, data)) for name, data in UNUSUAL.items()]

    results = gallery.post("/v1/galleries/g/images", files=files).json()["results"]

    assert {result["status"] for result in results} == {"created"}
    red = np.asarray(Image.open(io.BytesIO(gallery.get("/v1/galleries/g/items/animated.gif/thumbnail").content)))
    assert (red[..., 0] > 200).all()
    grey = np.asarray(Image.open(io.BytesIO(gallery.get("/v1/galleries/g/items/sixteen.png/thumbnail").content)))
    assert abs(int(grey[5, 5]) - 40_000 // 257) <= 3


def test_exif_rotation_is_honoured(gallery: TestClient) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    files = [("files", ("upright", saved(upright, "PNG"))), ("files", ("turned", turned))]
    gallery.post("/v1/galleries/g/images", files=files)

    answer = gallery.post("/v1/galleries/g/search", params={"k": 2}, content=saved(upright, "PNG")).json()

    assert {neighbor["id"] for neighbor in answer["neighbors"]} == {"upright", "turned"}
    assert all(neighbor["distance"] < 1e-2 for neighbor in answer["neighbors"])


class BlindToBlack(nn.Module):
    """Gives means of colours, and nothing finite for an image that is black."""

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3)).repeat(1, 2)
        is_black = images.mean(dim=(1, 2, 3)) < -1.9
        return torch.where(is_black[:, None], torch.full_like(means, float("nan")), means)


def test_an_image_that_a_network_cannot_encode_is_rejected_alone(client: TestClient) -> None:
    spec = json.dumps({"embedding_dim": 6, "normalize": False, "preprocessing": PREPROCESSING})
    files = {"embedding_model": ("phi", torchscript_bytes(BlindToBlack()))}
    assert client.post("/v1/model-versions", data={"name": "v1", "spec": spec}, files=files).status_code == 201
    create_gallery(client)
    colours = ["white", "black", "red", "black", "blue", "green", "white"]
    images = [saved(Image.new("RGB", (8, 8), colour), "PNG") for colour in colours]

    answer = client.post(
        "/v1/galleries/g/images", files=[("files", (f"{n}.png", data)) for n, data in enumerate(images)]
    )

    results = answer.json()["results"]
    assert [result["status"] == "rejected" for result in results] == [colour == "black" for colour in colours]
    assert "not finite" in results[1]["error"]
    found = client.post("/v1/galleries/g/search", files={"file": images[4]}).json()["neighbors"]
    assert (found[0]["id"], found[0]["distance"]) == ("4.png", 0)
    assert len(found) == 5
