"""`serve` as a user runs it: start, use, stop, start again."""

from pathlib import Path

from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    post_images,
    register_transformation,
    register_version,
    search,
    start_upgrade,
    state_of,
)
from tests.served import Served, wait_for


def test_an_upgrade_runs_in_the_worker_and_survives_a_restart(served: Served) -> None:
    client = served.client
    for version in ("v1", "v2"):
        register_version(client, version)
    register_transformation(client, "v1", "v2")
    create_gallery(client)
    post_images(client, range(20))

    upgrade_id = start_upgrade(client, "v2")
    wait_for(lambda: state_of(client, upgrade_id) == "ready")
    live = client.post(f"/v1/upgrades/{upgrade_id}/cutover")
    answer = search(client, 3)
    served.stop()
    served.start()
    again = search(client, 3)

    assert live.json()["state"] == "live"
    assert answer["model_version"] == "v2"
    assert again == answer


def test_the_worker_logs_under_the_id_of_the_request_that_asked_for_the_work(
    tmp_path: Path, serve_settings: dict[str, str]
) -> None:
    served = Served(tmp_path / "data", sweep_every_seconds="600", **serve_settings)  # no sweep asks for a slice besides
    served.start()
    create_upgradable_gallery(served.client)
    post_images(served.client, range(20))
    body = {"to_version": "v2"}

    answer = served.client.post("/v1/galleries/g/upgrades", json=body, headers={"X-Request-ID": "asked-here"})
    wait_for(lambda: state_of(served.client, answer.json()["id"]) == "ready")
    served.stop()

    lines = (served.data / "worker.log").read_text().splitlines()
    of_this_upgrade = [line for line in lines if "upgrade.batch_recorded" in line or "upgrade.state_changed" in line]
    assert len(of_this_upgrade) > 1
    assert [line for line in of_this_upgrade if not line.endswith("request_id=asked-here")] == []
