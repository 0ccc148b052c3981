"""Networks over HTTP: what was registered comes out, and our own h and g as ONNX too."""

import hashlib

import numpy as np
import onnxruntime
import pytest
from fastapi.testclient import TestClient

from models.artifacts import load_transformation_network
from tests.networks import encoder_bytes, onnx_encoder_bytes, transformation_bytes
from tests.problems import check_problem
from tests.registrations import post_transformation, post_version
from tests.scenario import register_transformation, register_version
from tests.unit.models.artifact_files import normal, onnx_matrix

H = "/v1/transformations/{}/artifacts/h"


@pytest.fixture
def transformation_id(client: TestClient) -> int:
    """From v1 to v2, whose embeddings have unit norm."""
    register_version(client, "v1")
    register_version(client, "v2", normalize=True)
    return register_transformation(client, "v1", "v2")


def test_what_was_registered_comes_out_byte_for_byte_with_its_digest(
    client: TestClient, transformation_id: int
) -> None:
    phi = client.get("/v1/model-versions/v1/artifacts/embedding_model")
    psi = client.get("/v1/model-versions/v1/artifacts/side_information_model")
    h = client.get(H.format(transformation_id), params={"format": "safetensors"})
    g = client.get(f"/v1/transformations/{transformation_id}/artifacts/g")

    assert phi.content == encoder_bytes(6, seed=1)
    assert psi.content == encoder_bytes(5, seed=101)
    assert h.content == transformation_bytes(6, 5, 8, seed=7)
    assert g.content == transformation_bytes(6, 5, 4, seed=8)
    assert phi.headers["etag"] == f'"{hashlib.sha256(phi.content).hexdigest()}"'
    assert h.headers["etag"] == f'"{client.get(f"/v1/transformations/{transformation_id}").json()["h_digest"]}"'


def test_h_and_g_come_out_as_onnx_that_gives_what_they_give(client: TestClient, transformation_id: int) -> None:
    generator = np.random.default_rng(0)
    embedding, side = (generator.standard_normal((9, dim), np.float32) for dim in (6, 5))

    for part, to_dim, normalize in (("h", 8, "true"), ("g", 4, "false")):
        answer = client.get(f"/v1/transformations/{transformation_id}/artifacts/{part}", params={"format": "onnx"})
        stored = client.get(f"/v1/transformations/{transformation_id}/artifacts/{part}")

        session = onnxruntime.InferenceSession(answer.content, providers=["CPUExecutionProvider"])
        expected = load_transformation_network(stored.content, from_dim=6, side_information_dim=5, to_dim=to_dim)
        found = session.run(None, {"embedding": embedding, "side_information": side})[0]
        np.testing.assert_allclose(found, expected(embedding, side), atol=1e-4)
        about = session.get_modelmeta().custom_metadata_map
        assert (about["part"], about["from_version"], about["to_version"]) == (part, "v1", "v2")
        assert (about["normalize"], about["to_dim"], about["precision"]) == (normalize, str(to_dim), "float32")
        assert about["source_sha256"] == hashlib.sha256(stored.content).hexdigest()
        assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'


@pytest.mark.parametrize("format_", ["onnx", "safetensors"])
def test_a_client_that_has_it_is_told_so_and_head_says_the_same_without_the_bytes(
    client: TestClient, transformation_id: int, format_: str
) -> None:
    url = H.format(transformation_id)
    first = client.get(url, params={"format": format_})

    for given in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = client.get(url, params={"format": format_}, headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    other = client.get(url, params={"format": format_}, headers={"If-None-Match": '"other"'})
    head = client.head(url, params={"format": format_})

    assert other.status_code == 200
    assert (head.status_code, head.headers["etag"]) == (200, first.headers["etag"])
    assert head.headers["content-length"] == str(len(first.content))


def test_a_foreign_network_comes_out_as_registered_and_as_nothing_else(client: TestClient) -> None:
    for name, dim in (("a", 6), ("b", 8)):
        assert post_version(client, name, onnx_encoder_bytes(dim, 0), embedding_dim=dim).is_success
    h = onnx_matrix(normal(6, 8))
    answer = post_transformation(client, "a", "b", h)
    assert answer.is_success, answer.text
    url = H.format(answer.json()["id"])

    assert client.get(url).content == h
    assert client.get(url, params={"format": "onnx"}).content == h
    refused = client.get(url, params={"format": "safetensors"})
    check_problem(refused, 406)
    assert "registered as onnx" in refused.json()["detail"]
    assert client.get("/v1/model-versions/a/artifacts/embedding_model").content == onnx_encoder_bytes(6, 0)


def test_a_part_that_is_not_there_is_404_and_one_that_cannot_be_is_422(client: TestClient) -> None:
    register_version(client, "v1")
    register_version(client, "v3")
    transformation_id = register_transformation(client, "v1", "v3")

    check_problem(client.get(f"/v1/transformations/{transformation_id}/artifacts/g"), 404)
    check_problem(client.get("/v1/model-versions/v3/artifacts/side_information_model"), 404)
    check_problem(client.get("/v1/transformations/999/artifacts/h"), 404)
    check_problem(client.get("/v1/model-versions/nothing/artifacts/embedding_model"), 404)
    check_problem(client.get(f"/v1/transformations/{transformation_id}/artifacts/f"), 422)
    check_problem(client.get(H.format(transformation_id), params={"format": "pickle"}), 422)
