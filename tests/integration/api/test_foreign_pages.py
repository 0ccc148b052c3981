"""A page of another origin, or under a name that is not ours, changes nothing."""

import pytest
from fastapi.testclient import TestClient

from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import post_images

EVIL = {"Origin": "http://evil.example"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/upgrades/1/cutover"),
        ("POST", "/v1/upgrades/1/rollback?accept_loss=true"),
        ("POST", "/v1/transformations/train"),
        ("DELETE", "/v1/galleries/g"),
        ("PATCH", "/v1/galleries/g"),
    ],
)
def test_a_page_of_another_origin_changes_nothing(gallery: TestClient, method: str, path: str) -> None:
    check_problem(gallery.request(method, path, headers=EVIL), 403, "A page of another origin")
    check_problem(gallery.request(method, path, headers=EVIL | {"Content-Type": "text/plain"}, content=b"{}"), 403)


def test_a_form_of_another_origin_stores_nothing(gallery: TestClient) -> None:
    answer = gallery.post("/v1/galleries/g/images", files={"files": ("a.png", image_bytes(0))}, headers=EVIL)

    check_problem(answer, 403)
    assert gallery.get("/v1/galleries/g").json()["items"] == 0


def test_a_name_that_is_not_ours_is_answered_nothing(gallery: TestClient) -> None:
    post_images(gallery, range(1))

    answer = gallery.get("/v1/galleries/g/items", headers={"Host": "rebound.example"})

    check_problem(answer, 421, "GALLERY_ALLOWED_HOSTS")


def test_our_own_page_may(gallery: TestClient) -> None:
    answer = gallery.patch("/v1/galleries/g", json={"task": "class"}, headers={"Origin": "http://testserver"})

    assert answer.status_code == 200
