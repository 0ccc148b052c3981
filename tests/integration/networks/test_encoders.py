"""Encoders of every kind of artifact, and TorchScript that is trusted no more."""

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.networks import image_bytes, torchscript_bytes
from tests.problems import check_problem
from tests.registrations import ENCODERS, post_version, seeded, sha256
from tests.scenario import create_gallery, post_images, search
from tests.unit.models.artifact_files import Images


@pytest.mark.parametrize("name", ENCODERS)
def test_a_version_of_every_kind_is_registered_and_encodes(client: TestClient, name: str) -> None:
    kind, make = ENCODERS[name]
    phi, psi = make(6, 1), make(5, 2)

    answer = post_version(client, "v", phi, psi, side_information_dim=5)
    create_gallery(client, version="v")
    post_images(client, range(3))

    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/model-versions/v")
    view = answer.json()
    assert (view["embedding_model_kind"], view["side_information_model_kind"]) == (kind, kind)
    assert (view["embedding_model_digest"], view["side_information_model_digest"]) == (sha256(phi), sha256(psi))
    assert client.get("/v1/model-versions/v").json() == view
    nearest = search(client, 2)["neighbors"][0]
    assert nearest["id"] == "image-2.png"
    assert nearest["distance"] == pytest.approx(0, abs=0.02)


def test_a_registered_torchscript_is_not_run_once_the_operator_trusts_it_no_more(
    settings: Settings, client: TestClient
) -> None:
    post_version(client, "v", torchscript_bytes(seeded(Images, 6, seed=1)))
    create_gallery(client, version="v")
    with TestClient(create_app(settings.model_copy(update={"trust_torchscript": False}))) as distrusting:
        answer = distrusting.post("/v1/galleries/g/search/vectors", json={"vectors": [[1] * 6]})
        image = distrusting.post("/v1/galleries/g/images", files={"files": ("x", image_bytes(1))})

    assert answer.status_code == 200
    check_problem(image, 409, "GALLERY_TRUST_TORCHSCRIPT=1")
