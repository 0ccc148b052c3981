"""Requests for trainings: refused with a sentence, and the same one sent again."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.paired_vectors import paired_columns, parquet
from tests.trainings import ask, check_refused

BAD_REQUESTS: dict[str, tuple[int, dict[str, Any], str]] = {
    "unknown version": (404, {"to_version": "v9"}, "no model version named 'v9'"),
    "same version": (422, {"to_version": "v1"}, "from one model version to another"),
    "no side-information to learn": (422, {"to_version": "v3", "with_g": True}, "no g to it"),
    "data set and pairs": (422, {"dataset": "x"}, "give one of them"),
    "unknown recipe": (422, {"options": {"recipe": "magic"}}, "options.recipe"),
    "no epochs": (422, {"options": {"epochs": 0}}, "options.epochs"),
    "unknown task": (422, {"options": {"task": "items"}}, "options.task"),
    "no task": (422, {"options": {"task": None}}, "options.task"),
    "no members": (422, {"options": {"members": 0}}, "options.members"),
    "too many members": (422, {"options": {"members": 17}}, "options.members"),
    "classes by the paper's recipe": (
        422,
        {"options": {"recipe": "paper", "task": "class"}},
        "needs the default recipe",
    ),
    "widths by the paper's recipe": (422, {"options": {"recipe": "paper", "inner_dim": "auto"}}, "holds no rows out"),
    "no such width": (422, {"options": {"inner_dim": "narrow"}}, "options.inner_dim"),
    "no width": (422, {"options": {"inner_dim": 0}}, "options.inner_dim"),
    "unknown option": (422, {"options": {"epoch": 1}}, "options.epoch"),
    "unknown field": (422, {"form_version": "v1"}, "form_version"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused_with_a_sentence(versions: TestClient, settings: Settings, name: str) -> None:
    status, fields, sentence = BAD_REQUESTS[name]

    answer = ask(versions, parquet(paired_columns()), **fields)

    check_refused(versions, settings, answer, status, sentence)


def test_what_is_neither_a_form_nor_json_is_refused(versions: TestClient, settings: Settings) -> None:
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"[]"):
        for kind in ("application/json", "text/plain"):
            answer = versions.post("/v1/transformations/train", content=body, headers={"content-type": kind})

            check_refused(versions, settings, answer, 422, "")


def test_json_that_any_pages_form_could_send_is_refused(versions: TestClient, settings: Settings) -> None:
    body = b'{"from_version": "v1", "to_version": "v2", "dataset": "d"}'
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        answer = versions.post("/v1/transformations/train", content=body, headers=headers)

        check_refused(versions, settings, answer, 422, "application/json")


def test_the_same_request_again_is_the_same_training(versions: TestClient) -> None:
    pairs = parquet(paired_columns())

    answers = [ask(versions, pairs, key="k"), ask(versions, pairs, key="k"), ask(versions, pairs, key="k", with_g=True)]

    assert [answer.status_code for answer in answers] == [202, 202, 422]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[1].headers["location"] == answers[0].headers["location"]
    assert len(versions.get("/v1/jobs").json()["items"]) == 1
