"""Which transformations a training also learns from: those that may have made the rows that its h will be given."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from models.artifacts import save_network
from models.transformation import Transformation
from service.app import create_app
from service.domain.registry.registration import NetworkStore
from service.domain.registry.versions import get_version
from service.domain.training.chains import ChainBroken, chained_sources, chained_transformations
from service.settings import Settings
from service.tables import Task
from tests.networks import PublicForm, encoder_bytes, torchscript_bytes, transformation_bytes
from tests.paired_vectors import paired_columns, parquet
from tests.registrations import post_transformation, post_version
from tests.scenario import register_transformation
from tests.trainings import ask, begin, check_refused, job_of, write_images
from workers.app import WorkerParts
from workers.training import advance_training


def chained_of(client: TestClient, **fields: Any) -> list[int]:
    job = job_of(client, begin(client, from_version="v2", to_version="v3", dataset="photos", **fields))
    found: list[int] = job["request"]["chained_transformations"]
    return found


@pytest.fixture
def photos(versions: TestClient, datasets: Path) -> TestClient:
    """A client whose v1 to v3 are registered, and images to train from."""
    write_images(datasets / "photos")
    return versions


def test_the_transformation_of_each_version_into_the_first_one_is_learned_from(photos: TestClient) -> None:
    nothing_yet = chained_of(photos)
    taken = register_transformation(photos, "v1", "v2")
    post_transformation(photos, "v1", "v2", transformation_bytes(6, 5, 8, seed=7))  # no g: no rows lead on from it
    register_transformation(photos, "v1", "v3")

    assert nothing_yet == []
    assert chained_of(photos) == [taken]
    assert chained_of(photos, options={"chained": False}) == []


def test_of_several_from_one_version_the_default_is_learned_from(photos: TestClient, settings: Settings) -> None:
    older, _ = (register_transformation(photos, "v1", "v2") for _ in range(2))

    refused = ask(photos, None, from_version="v2", to_version="v3", dataset="photos")
    photos.patch(f"/v1/transformations/{older}", json={"default": True})

    check_refused(photos, settings, refused, 409, "set options.chained to false, or make one the default")
    assert chained_of(photos) == [older]


def test_the_way_back_from_the_version_that_is_led_to_is_not_learned_from(photos: TestClient) -> None:
    register_transformation(photos, "v1", "v2")

    job = job_of(photos, begin(photos, from_version="v2", to_version="v1", dataset="photos"))

    assert job["request"]["chained_transformations"] == []


def test_a_version_without_side_information_is_led_on_from_by_h_alone(photos: TestClient) -> None:
    into_v3 = [register_transformation(photos, before, "v3") for before in ("v1", "v2")]
    post_version(photos, "v4", encoder_bytes(6, seed=4), embedding_dim=6)

    job = job_of(photos, begin(photos, from_version="v3", to_version="v4", dataset="photos"))

    assert job["request"]["chained_transformations"] == into_v3


@pytest.mark.parametrize("task", ["instance", "class"])
def test_what_was_drawn_to_classes_is_learned_from_only_where_classes_are_searched_for(
    photos: TestClient, task: Task
) -> None:
    older = register_transformation(photos, "v1", "v2")
    drawing = save_network(Transformation(6, 5, 8, inner_dim=8, classes=3))
    newer = post_transformation(photos, "v1", "v2", drawing, transformation_bytes(6, 5, 4, seed=8)).json()["id"]

    photos.patch(f"/v1/transformations/{newer}", json={"default": True})

    assert chained_of(photos, options={"task": task}) == [newer if task == "class" else older]


def test_networks_that_may_not_be_run_here_are_not_learned_from(photos: TestClient, worker: WorkerParts) -> None:
    scripted = [torchscript_bytes(PublicForm(6, 5, dim)) for dim in (8, 4)]
    transformation_id = post_transformation(photos, "v1", "v2", *scripted).json()["id"]

    with worker.database.session_scope() as session:
        before, after = (get_version(session, name) for name in ("v2", "v3"))
        found = [
            chained_transformations(
                NetworkStore(session, worker.blobs, worker.settings.model_copy(update={"trust_torchscript": trusted})),
                before,
                after,
                "instance",
            )
            for trusted in (True, False)
        ]

    assert found == [(transformation_id,), ()]


def test_paired_vectors_say_nothing_of_chains(versions: TestClient) -> None:
    register_transformation(versions, "v2", "v1")

    job = job_of(versions, begin(versions, parquet(paired_columns())))

    assert job["request"]["chained_transformations"] == []


def test_the_further_views_count_as_memory_and_the_refusal_says_how_to_do_without(
    photos: TestClient, settings: Settings
) -> None:
    """120 images and one that cannot be read: (8 + 4 + 10) numbers of 4 bytes each, and once more by the chain."""
    register_transformation(photos, "v1", "v2")
    enough = 120 * (8 + 4 + 10) * 4

    wanted: dict[str, Any] = {"from_version": "v2", "to_version": "v3", "dataset": "photos"}
    with TestClient(create_app(settings.model_copy(update={"max_training_bytes": enough}))) as small:
        refused = ask(small, **wanted)
        check_refused(photos, settings, refused, 413, f"take {2 * enough} bytes; a training may take {enough}.")
        accepted = ask(small, **wanted, options={"chained": False})

    assert f"(options.chained: false), they take {enough}" in refused.json()["detail"]
    assert accepted.status_code == 202


def test_a_chained_transformation_that_is_deleted_before_its_turn_fails_the_training_with_a_sentence(
    photos: TestClient, worker: WorkerParts
) -> None:
    transformation_id = register_transformation(photos, "v1", "v2")
    job_id = begin(photos, from_version="v2", to_version="v3", dataset="photos")
    assert photos.delete(f"/v1/transformations/{transformation_id}").status_code == 204

    assert not advance_training(worker, job_id)

    job = job_of(photos, job_id)
    assert (job["state"], job["error"].split(",")[0]) == ("failed", f"Transformation {transformation_id}")
    with worker.database.session_scope() as session, pytest.raises(ChainBroken):
        chained_sources(session, [transformation_id])
