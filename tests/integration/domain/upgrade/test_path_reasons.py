"""What a dry run says of its path: why it is this one, and what would make a shorter one possible."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from models.artifacts import save_network
from models.transformation import Transformation
from tests.networks import encoder_bytes, transformation_bytes
from tests.registrations import post_transformation, post_version
from tests.scenario import create_gallery, import_vectors, register_transformation, register_version, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts


@pytest.fixture
def versions_alone(client: TestClient) -> TestClient:
    """v1 to v3, a transformation from v1 to v2, and the gallery `g` under v1."""
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    register_transformation(client, "v1", "v2")
    create_gallery(client)
    import_vectors(client, ["a", "b"])
    return client


@pytest.fixture
def upgraded(versions_alone: TestClient, worker: WorkerParts) -> TestClient:
    """The same after an upgrade to v2 that can still be rolled back."""
    run_until(worker, versions_alone, start_upgrade(versions_alone, "v2", cutover="auto"), "live")
    return versions_alone


def dry_run(client: TestClient, to_version: str = "v3", **options: Any) -> tuple[list[list[int]], str]:
    """Return the path, as [generation, transformations...], and the reason."""
    answer = client.post("/v1/galleries/g/upgrades", json={"to_version": to_version, "dry_run": True, **options})
    assert answer.status_code == 200, answer.text
    path = [[leg["generation"], *leg["transformations"]] for leg in answer.json()["path"]]
    return path, answer.json()["reason"]


def test_a_direct_way_is_called_so_and_one_that_was_asked_for_too(versions_alone: TestClient) -> None:
    found, asked = dry_run(versions_alone, "v2"), dry_run(versions_alone, "v2", transformation=1)

    assert found == (
        [[1, 1]],
        "Direct, as always where there is a direct way, with side-information or without: transformation 1 leads to"
        " 'v2' from generation 1, whose images were encoded by 'v1'.",
    )
    assert asked == ([[1, 1]], "Transformation 1 was asked for.")


def test_a_chain_names_the_transformation_that_is_missing(versions_alone: TestClient) -> None:
    register_transformation(versions_alone, "v2", "v3")

    assert dry_run(versions_alone) == (
        [[1, 1, 2]],
        "2 hops since the images were encoded by 'v1', because no transformation from 'v1' to 'v3' is registered: train"
        " or register one for a direct way.",
    )


def test_hops_before_the_path_count_and_a_direct_way_from_a_kept_generation_ends_them(upgraded: TestClient) -> None:
    register_transformation(upgraded, "v2", "v3")
    chained = dry_run(upgraded)
    register_transformation(upgraded, "v1", "v3")

    direct = dry_run(upgraded)

    assert chained[0] == [[2, 2]]
    assert chained[1].startswith("2 hops since the images were encoded by 'v1', because no transformation from 'v1'")
    assert direct[0] == [[1, 3], [2, 2]]
    assert direct[1].startswith("Direct,")
    assert direct[1].endswith(" Items that only generation 2 has take transformation 2.")


def test_a_chain_from_a_generation_whose_origin_was_dropped_says_so(upgraded: TestClient) -> None:
    register_transformation(upgraded, "v1", "v3")
    register_transformation(upgraded, "v2", "v3")
    assert upgraded.post("/v1/upgrades/1/finalize").status_code == 200

    path, reason = dry_run(upgraded)

    assert path == [[2, 3]]
    assert reason == (
        "2 hops since the images were encoded by 'v1', because generation 1, which they were encoded into, is no longer"
        " stored: a later upgrade can be direct if it is made before the one before it is finalized."
    )


def test_a_chain_past_a_transformation_that_draws_to_classes_names_it(versions_alone: TestClient) -> None:
    register_transformation(versions_alone, "v2", "v3")
    drawing = save_network(Transformation(6, 5, 10, inner_dim=8, classes=3))
    post_transformation(versions_alone, "v1", "v3", drawing)

    path, reason = dry_run(versions_alone)

    assert path == [[1, 1, 2]]
    assert "transformation 3 from 'v1' to 'v3' draws items to the means of their classes" in reason
    assert "task 'instance' for a direct way" in reason


def test_a_chain_that_is_kept_for_its_side_information_says_so(upgraded: TestClient) -> None:
    post_version(upgraded, "v4", encoder_bytes(6, seed=4), encoder_bytes(3, seed=104), side_information_dim=3)
    h, g = (transformation_bytes(8, 4, dim, seed=dim) for dim in (6, 3))
    post_transformation(upgraded, "v2", "v4", h, g)
    post_transformation(upgraded, "v1", "v4", transformation_bytes(6, 5, 6, seed=1))

    path, reason = dry_run(upgraded, "v4")

    assert path == [[2, 2]]
    assert "transformation 3 from 'v1' to 'v4' and the active generation's way do not agree" in reason
    assert reason.endswith("have a g in both for a direct way.")
