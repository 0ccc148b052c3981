"""Upgrades and actions on them that are refused over HTTP."""

from fastapi.testclient import TestClient

from tests.problems import check_problem
from tests.scenario import register_transformation, register_version, start_upgrade


def test_an_upgrade_without_a_transformation_is_409(gallery: TestClient) -> None:
    register_version(gallery, "v2")

    check_problem(gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2"}), 409)
    check_problem(gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v1"}), 409)


def test_a_second_upgrade_at_once_is_409_and_names_the_first(gallery: TestClient) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    first = start_upgrade(gallery, "v2")

    second = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2"})

    assert f"Upgrade {first}" in check_problem(second, 409)


def test_refused_actions_say_what_is_possible(gallery: TestClient) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    upgrade_id = start_upgrade(gallery, "v2")

    detail = check_problem(gallery.post(f"/v1/upgrades/{upgrade_id}/rollback"), 409)

    assert detail == "An upgrade that is planned cannot rollback; possible now: cancel, pause."
