"""Query parameters that a call does not have are refused, wherever they are given."""

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.networks import image_bytes
from tests.scenario import post_images

PNG = {"Content-Type": "image/png"}


def test_no_call_ignores_a_parameter_that_it_does_not_have(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    calls = [(method, path) for path, methods in described["paths"].items() for method in methods]

    answers = {
        (method, path): client.request(method, re.sub(r"\{[^}]*\}", "1", path), params={"nonsense": "1"}, json={})
        for method, path in calls
    }

    assert len(answers) > 40
    for call, answer in answers.items():
        assert answer.status_code == 422, call
        assert "There is no parameter 'nonsense'" in answer.json()["detail"], call


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("/v1/galleries?limt=5", "There is no parameter 'limt'; did you mean 'limit'?"),
        ("/v1/galleries?limit=5&limit=6", "The parameter 'limit' is given 2 times."),
        ("/v1/galleries?" + "a" * 5_000, "a…'. Parameters are cursor, limit."),
        ("/v1/galleries/g?limit=1", "There is no parameter 'limit': this call has none."),
        ("/v1/galleries/g/items?LIMIT=1", "There is no parameter 'LIMIT'"),
    ],
)
def test_the_refusal_names_what_was_meant(gallery: TestClient, address: str, sentence: str) -> None:
    answer = gallery.get(address)

    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]


def found(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [neighbor["id"] for neighbor in answer.json()["neighbors"]]


def test_options_beside_a_form_count_as_those_in_it(gallery: TestClient) -> None:
    post_images(gallery, range(4))
    path, files = "/v1/galleries/g/search", {"file": image_bytes(0)}

    beside = gallery.post(path, files=files, params={"k": 2, "filter": '{"id": "image-3.png"}'})
    mixed = gallery.post(path, files=files, params={"k": 2}, data={"filter": '{"id": "image-3.png"}'})
    raw = gallery.post(path, content=image_bytes(0), headers=PNG, params={"k": 2, "filter": '{"id": "image-3.png"}'})

    assert found(beside) == found(mixed) == found(raw) == ["image-3.png"]


def test_an_option_in_the_form_and_beside_it_is_refused(gallery: TestClient) -> None:
    answer = gallery.post("/v1/galleries/g/search", files={"file": image_bytes(0)}, params={"k": 2}, data={"k": "3"})

    assert answer.status_code == 422
    assert "k: given in the form and in the address" in answer.json()["detail"]
