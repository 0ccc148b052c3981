"""Model versions over HTTP: the form, what is shown of them, and how a spec is refused."""

from datetime import datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.networks import PREPROCESSING, encoder_bytes
from tests.problems import check_problem
from tests.registrations import post_version, sha256


def test_a_version_without_side_information_is_shown_with_the_defaults_of_its_preprocessing(client: TestClient) -> None:
    phi = encoder_bytes(6, 1)

    answer = post_version(client, "v", phi)

    view = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/model-versions/v")
    assert datetime.fromisoformat(view.pop("created_at")).tzinfo is not None
    assert view == {
        "name": "v",
        "shared": False,
        "embedding_dim": 6,
        "side_information_dim": None,
        "normalize": False,
        "preprocessing": {"resize": None, "crop": "none", "interpolation": "bilinear", **PREPROCESSING},
        "embedding_model_kind": "safetensors",
        "embedding_model_digest": sha256(phi),
        "embedding_model_form": {
            "input": {
                "layout": "nchw",
                "channels": "rgb",
                "dtype": "float32",
                "range": [0, 1],
                "name": None,
                "batch": None,
            },
            "output": None,
        },
        "side_information_model_kind": None,
        "side_information_model_digest": None,
        "side_information_model_form": None,
    }


def test_a_version_is_shown_alike_alone_and_in_the_list_oldest_first(client: TestClient) -> None:
    registered = [post_version(client, name, encoder_bytes(6, 1)).json() for name in ("z", "a")]

    assert client.get("/v1/model-versions").json()["items"] == registered
    assert [client.get(f"/v1/model-versions/{name}").json() for name in ("z", "a")] == registered


WRONG: dict[str, tuple[dict[str, Any], list[object]]] = {
    "dimensions": ({"embedding_dim": 0}, ["embedding_dim"]),
    "unknown key": ({"norm": True}, ["norm"]),
    "channels": ({"preprocessing": PREPROCESSING | {"mean": [0.5, 0.5]}}, ["preprocessing", "mean"]),
    "interpolation": (
        {"preprocessing": PREPROCESSING | {"interpolation": "cubic"}},
        ["preprocessing", "interpolation"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_spec_is_refused_by_the_place_that_is_wrong(client: TestClient, name: str) -> None:
    spec, location = WRONG[name]

    answer = post_version(client, "v", encoder_bytes(6, 1), **spec)

    check_problem(answer, 422, ".".join(map(str, location)))
    assert [error["location"] for error in answer.json()["errors"]] == [location]
    assert client.get("/v1/model-versions").json()["items"] == []


def test_a_spec_that_is_not_json_is_refused(client: TestClient) -> None:
    answer = client.post(
        "/v1/model-versions", data={"name": "v", "spec": "{"}, files={"embedding_model": encoder_bytes(6, 1)}
    )

    check_problem(answer, 422, "The spec is not valid")


def test_a_deleted_version_is_gone(client: TestClient) -> None:
    post_version(client, "v", encoder_bytes(6, 1))

    deleted = client.delete("/v1/model-versions/v")

    assert (deleted.status_code, deleted.content) == (204, b"")
    check_problem(client.get("/v1/model-versions/v"), 404, "'v'")
    check_problem(client.delete("/v1/model-versions/v"), 404, "'v'")
