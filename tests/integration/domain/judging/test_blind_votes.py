"""Blind votes over HTTP: one counts of each item, for the generation that stood on that side."""

from fastapi.testclient import TestClient

from service.domain.judging.blind_votes import next_is_left
from tests.problems import check_problem
from tests.scenario import create_upgradable_gallery, post_images, start_upgrade


def test_a_vote_is_for_the_generation_that_stood_there_and_a_later_one_takes_its_place(client: TestClient) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(2))
    upgrade_id = start_upgrade(client, "v2")
    path = f"/v1/upgrades/{upgrade_id}/votes"
    side = {True: "left", False: "right"}
    next_side = next_is_left(upgrade_id, "image-0.png")

    first = client.post(path, json={"id": "image-0.png", "better": side[next_side]}).json()
    assert first == {"before": 0, "after": 1, "neither": 0, "p_value": 1.0}
    client.post(path, json={"id": "image-0.png", "better": side[not next_side]})
    client.post(path, json={"id": "image-1.png", "better": "neither"})

    assert client.get(path).json() == {"before": 1, "after": 0, "neither": 1, "p_value": 1.0}
    check_problem(client.post(path, json={"id": "none", "better": "left"}), 404)
    check_problem(client.post(path, json={"id": "image-0.png", "better": "middle"}), 422)
    check_problem(client.get("/v1/upgrades/99/votes"), 404)
