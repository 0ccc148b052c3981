"""A refusal is a problem document, and costs its sender only (promise 9)."""

from fastapi.testclient import TestClient

from tests.bad_files import bomb
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import post_images


def test_unknown_things_are_404(gallery: TestClient) -> None:
    check_problem(gallery.get("/v1/galleries/none"), 404)
    check_problem(gallery.post("/v1/galleries/none/images", files=[("files", ("x", image_bytes(1)))]), 404)
    check_problem(gallery.post("/v1/galleries/none/search", content=image_bytes(1)), 404)
    check_problem(gallery.post("/v1/galleries", json={"name": "x", "model_version": "none"}), 404)
    check_problem(gallery.post("/v1/galleries/g/upgrades", json={"to_version": "none"}), 404)
    check_problem(gallery.get("/v1/galleries/g/items/none"), 404)
    check_problem(gallery.delete("/v1/galleries/g/items/none"), 404)
    check_problem(gallery.get("/v1/upgrades/99"), 404)
    check_problem(gallery.get("/v1/jobs/99"), 404)
    check_problem(gallery.get("/nowhere"), 404)
    check_problem(gallery.put("/v1/galleries"), 405)


def test_one_senders_bad_request_does_not_disturb_the_gallery(gallery: TestClient) -> None:
    post_images(gallery, range(3))
    gallery.post("/v1/galleries/g/images", files=[("files", ("bomb", bomb()))])

    answer = gallery.post("/v1/galleries/g/search", params={"k": 1}, content=image_bytes(2)).json()

    assert answer["neighbors"][0]["id"] == "image-2.png"
