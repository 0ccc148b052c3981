"""What is known of a gallery's embeddings: counted from its rows, and read from its upgrades' reports."""

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from tests.exported import import_table
from tests.problems import check_problem
from tests.reported import ITEMS, reported_upgrade
from tests.scenario import (
    create_gallery,
    import_vectors,
    post_images,
    register_transformation,
    register_version,
    start_upgrade,
)
from tests.working import cut_over, run_until
from workers.app import WorkerParts

QUALITY = "/v1/galleries/g/quality"


def upgrade(client: TestClient, worker: WorkerParts, version: str) -> int:
    upgrade_id = start_upgrade(client, version, cutover="auto")
    run_until(worker, client, upgrade_id, "live")
    return upgrade_id


def test_a_gallery_that_was_never_upgraded_says_where_its_items_come_from(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)
    empty = client.get(QUALITY).json()
    post_images(client, range(3))
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "embedding": [[1.0] * 6] * 3,
            "side_information": [[1.0] * 5] * 3,
            "origin": ["transformed", "transformed", "imported"],
            "hops": [2, 2, 0],
            "uncertainty": [1.0, None, None],
        }
    )
    assert import_table(client, table).status_code == 200
    client.delete("/v1/galleries/g/items/image-2.png")

    found = client.get(QUALITY).json()

    nothing = {"uncertainty": None, "uncertainty_items": 0}
    assert (empty["origins"], empty["uncertainty"], empty["items"]) == ([], None, 0)
    assert found["origins"] == [
        {"origin": "encoded", "hops": 0, "items": 2, **nothing},
        {"origin": "imported", "hops": 0, "items": 1, **nothing},
        {"origin": "transformed", "hops": 2, "items": 2, "uncertainty": 1.0, "uncertainty_items": 1},
    ]
    assert (found["items"], found["uncertainty"], found["versions"], found["upgrades"]) == (5, 1.0, ["v1"], [])
    check_problem(client.get("/v1/galleries/other/quality"), 404)


def test_what_an_upgrade_measured_is_read_from_its_newest_report(client: TestClient, worker: WorkerParts) -> None:
    upgrade_id = reported_upgrade(client, worker)
    before = client.get(QUALITY).json()
    report = client.get(f"/v1/upgrades/{upgrade_id}/report", params={"format": "json"}).json()

    cut_over(client, worker, upgrade_id, override={"reason": "its networks are random"})
    found = client.get(QUALITY).json()

    assert before["upgrades"] == []
    assert [step["upgrade"] for step in found["upgrades"]] == [upgrade_id]
    measured = found["upgrades"][0]["measured"]
    assert (measured["report"], measured["verdict"]) == (2, report["verdict"])
    assert [(gate["metric"], gate["value"]) for gate in measured["gates"]] == [
        (gate["metric"], gate["value"]) for gate in report["content"]["gates"]
    ]
    assert [(share["origin"], share["hops"], share["items"]) for share in found["origins"]] == [
        ("transformed", 1, ITEMS)
    ]
    assert found["uncertainty"] == pytest.approx(found["origins"][0]["uncertainty"])
    assert found["versions"] == ["v1", "v2"]


def test_the_chain_leads_back_to_the_pixels_whatever_was_dropped_and_a_rollback_shortens_it(
    client: TestClient, worker: WorkerParts
) -> None:
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    first, second = register_transformation(client, "v1", "v2"), register_transformation(client, "v2", "v3")
    create_gallery(client)
    import_vectors(client, ["a", "b"])

    upgrades = [upgrade(client, worker, "v2")]
    assert client.post(f"/v1/upgrades/{upgrades[0]}/finalize").status_code == 200
    upgrades.append(upgrade(client, worker, "v3"))
    found = client.get(QUALITY).json()
    assert client.post(f"/v1/upgrades/{upgrades[1]}/rollback").status_code == 200
    after = client.get(QUALITY).json()

    assert found["versions"] == ["v1", "v2", "v3"]
    assert [(step["upgrade"], step["versions"], step["transformations"]) for step in found["upgrades"]] == [
        (upgrades[0], ["v1", "v2"], [first]),
        (upgrades[1], ["v2", "v3"], [second]),
    ]
    assert [(share["hops"], share["items"]) for share in found["origins"]] == [(2, 2)]
    assert (after["versions"], [step["upgrade"] for step in after["upgrades"]]) == (["v1", "v2"], upgrades[:1])


def test_a_path_of_several_hops_names_the_versions_on_the_way(client: TestClient, worker: WorkerParts) -> None:
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    path = [register_transformation(client, "v1", "v2"), register_transformation(client, "v2", "v3")]
    create_gallery(client)
    import_vectors(client, ["a"])

    upgrade(client, worker, "v3")
    found = client.get(QUALITY).json()

    assert found["versions"] == ["v1", "v2", "v3"]
    assert [(step["versions"], step["transformations"]) for step in found["upgrades"]] == [(["v1", "v2", "v3"], path)]
