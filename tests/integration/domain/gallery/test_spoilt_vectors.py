"""Vectors that cannot be stored: they cost the item that they are of, and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from models.artifacts import Encoder, NetworkForm
from service.networks.encoders import Encoders, Vectors
from tests.networks import image_bytes, solid_image_bytes
from tests.problems import check_problem
from tests.scenario import create_gallery, register_version

FACTORS = {0: np.nan, 60: np.inf, 120: 1e6, 180: 1e-8, 255: 0.0}  # by the brightness of an image of one colour
SOLID = {f"solid-{value}.png": solid_image_bytes(value) for value in FACTORS}


class SpoilingEncoders(Encoders):
    """Encoders whose φ and ψ are multiplied for images of one colour."""

    def _network(self, digest: str, output_dim: int, image: tuple[int, int, int], form: NetworkForm) -> Encoder:
        network = super()._network(digest, output_dim, image, form)

        def spoiling(inputs: Vectors) -> Vectors:
            first = inputs[:, :1, :1, :1]
            is_solid = (inputs == first).all(axis=(1, 2, 3))
            brightness = np.rint((first[:, 0, 0, 0] * 0.25 + 0.5) * 255)
            factors = [
                FACTORS.get(int(value), 1.0) if solid else 1.0
                for solid, value in zip(is_solid, brightness, strict=True)
            ]
            with np.errstate(all="ignore"):
                spoilt: Vectors = (network(inputs) * np.array(factors)[:, None]).astype(np.float32)
            return spoilt

        return spoiling


@pytest.fixture
def post(client: TestClient) -> Callable[..., dict[str, tuple[str, str | None]]]:
    """Post the solid images among four others to a gallery; return status and error by id."""
    register_version(client, "v1")
    parts = client.app.state.parts  # type: ignore[attr-defined]  # the application is wrapped by none
    writer = replace(parts.writer, encoders=SpoilingEncoders(parts.blobs, parts.settings))
    client.app.state.parts = replace(parts, writer=writer)  # type: ignore[attr-defined]  # as above

    def post(**gallery: str) -> dict[str, tuple[str, str | None]]:
        create_gallery(client, **gallery)
        names = {**SOLID, **{f"good-{seed}.png": image_bytes(seed) for seed in range(4)}}
        files = [("files", part) for part in sorted(names.items())]
        answer = client.post("/v1/galleries/g/images", files=files)
        assert answer.status_code == 200, answer.text
        return {result["id"]: (result["status"], result["error"]) for result in answer.json()["results"]}

    return post


@pytest.mark.parametrize(
    ("gallery", "words"),
    [
        ({"dtype": "float16"}, {0: "not finite", 60: "not finite", 120: "too large", 180: "so small"}),
        ({"dtype": "float32"}, {0: "not finite", 60: "not finite"}),
        ({"dtype": "float32", "metric": "cosine"}, {0: "not finite", 60: "not finite", 255: "is zero"}),
    ],
)
def test_images_whose_vectors_cannot_be_stored_are_rejected_alone_with_the_reason(
    client: TestClient,
    post: Callable[..., dict[str, tuple[str, str | None]]],
    gallery: dict[str, str],
    words: dict[int, str],
) -> None:
    results = post(**gallery)

    rejected = {name: error or "" for name, (status, error) in results.items() if status == "rejected"}
    assert rejected.keys() == {f"solid-{value}.png" for value in words}
    for value, word in words.items():
        assert word in rejected[f"solid-{value}.png"]
        assert "'v1'" in rejected[f"solid-{value}.png"]
    stored = {item["id"] for item in client.get("/v1/galleries/g/items").json()["items"]}
    assert stored == results.keys() - rejected.keys()


def test_an_import_names_its_bad_rows_and_counts_them(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client, metric="cosine")
    scales = np.where(np.arange(300) % 2, 1e-9, 1.0)
    scales[[0, 2]] = np.nan, 0.0
    columns = {"id": [str(n) for n in range(300)], "embedding": list(np.ones((300, 6)) * scales[:, None])}
    columns["side_information"] = list(np.ones((300, 5)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, (table := pa.table(columns)).schema) as writer:
        writer.write_table(table)

    answer = client.post("/v1/galleries/g/embeddings", content=sink.getvalue().to_pybytes())

    assert "152 rows cannot be stored; the first 100 are listed" in check_problem(answer, 422)
    details = {error["row"]: error["detail"] for error in answer.json()["errors"]}
    assert len(details) == 100
    assert ("not finite" in details[0], "so small" in details[1], "is zero" in details[2]) == (True, True, True)
    assert client.get("/v1/galleries/g").json()["items"] == 0


def test_a_file_with_an_id_that_cannot_be_stored_is_rejected_alone(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)
    files = [("files", (name, image_bytes(seed))) for seed, name in enumerate(["a.png", "x" * 600, "b.png"])]

    results = client.post("/v1/galleries/g/images", files=files).json()["results"]

    assert [result["status"] for result in results] == ["created", "rejected", "created"]
    assert "1 to 512 characters" in results[1]["error"]
