"""The rows that an upgrade is judged by are those that both versions encoded, beside what h gives for them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from service.domain.judging.evidence import JudgedItems, count_evidence, gallery_rows, judged_items
from service.domain.upgrade.upgrades import get_upgrade
from tests.judged import (
    CLASSES,
    DIM,
    encoded_outside,
    post_class_images,
    post_references,
    register_h,
    register_two_spaces,
)
from tests.scenario import start_upgrade
from tests.working import run_until
from workers.app import WorkerParts

pytestmark = pytest.mark.few_batches

ITEMS = 30
REFERENCES = (2, 3, 7)
LATER = (ITEMS, ITEMS + 1)


@pytest.fixture
def turn(client: TestClient) -> np.ndarray:
    return register_two_spaces(client)


@pytest.fixture
def upgrade_id(client: TestClient, worker: WorkerParts, turn: np.ndarray) -> int:
    """An upgrade by an h that is wrong by a factor of two, with three references and two images that came later."""
    register_h(client, 2 * turn)
    post_class_images(client, range(ITEMS))
    identifier = start_upgrade(client, "v2")
    run_until(worker, client, identifier, "ready")
    assert post_references(client, identifier, REFERENCES).is_success
    post_class_images(client, LATER)
    return identifier


def judged(worker: WorkerParts, upgrade_id: int, most: int = 100, seed: int = 0) -> JudgedItems | None:
    with worker.database.session_scope(snapshot=True) as session:
        upgrade = get_upgrade(session, upgrade_id)
        gallery = gallery_rows(session, upgrade)
        return judged_items(session, upgrade, gallery, most, seed, worker.networks.transform)


def test_references_and_images_that_came_later_are_what_both_versions_make_of_them(
    worker: WorkerParts, upgrade_id: int, turn: np.ndarray
) -> None:
    found = judged(worker, upgrade_id)

    assert found is not None
    assert (len(found), found.references) == (5, 3)
    before, after = (encoded_outside(matrix, (*REFERENCES, *LATER)) for matrix in (np.eye(DIM, dtype=np.float32), turn))
    np.testing.assert_allclose(found.before, before, rtol=5e-3, atol=0.05)
    np.testing.assert_allclose(found.after, after, rtol=5e-3, atol=0.05)
    np.testing.assert_allclose(found.transformed, 2 * after, rtol=1e-2, atol=0.1)
    np.testing.assert_array_equal(found.labels, found.labels[0] + np.array([0, 1, 0, -2, -1]))
    assert found.attributes["label"].tolist() == [f"class {number % CLASSES}" for number in (*REFERENCES, *LATER)]
    assert found.attributes["evidence"].tolist() == ["reference"] * 3 + ["ingested"] * 2
    assert found.source == "references and images that came while the upgrade was open"


def test_an_item_that_changed_is_no_reference_any_more_and_a_deleted_one_no_evidence(
    client: TestClient, worker: WorkerParts, upgrade_id: int
) -> None:
    post_class_images(client, [2])
    assert client.delete("/v1/galleries/g/items/3.png").is_success

    found = judged(worker, upgrade_id)

    assert found is not None
    assert (len(found), found.references) == (4, 1)


def test_vectors_that_were_imported_are_no_evidence(client: TestClient, worker: WorkerParts, turn: np.ndarray) -> None:
    register_h(client, turn)
    post_class_images(client, range(3))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    import_vectors(client, list("abcd"), np.random.default_rng(0).standard_normal((4, DIM)).astype(np.float32))

    assert judged(worker, upgrade_id) is None
    with worker.database.session_scope() as session:
        assert count_evidence(session, get_upgrade(session, upgrade_id)) == 0


def import_vectors(client: TestClient, ids: list[str], vectors: np.ndarray) -> None:
    table, stream = pa.table({"id": ids, "embedding": list(vectors)}), pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    assert client.post("/v1/galleries/g/embeddings", content=stream.getvalue().to_pybytes()).is_success


def test_how_the_embeddings_that_h_read_came_about_is_an_attribute(
    client: TestClient, worker: WorkerParts, turn: np.ndarray
) -> None:
    register_h(client, turn)
    post_class_images(client, range(2))
    import_vectors(client, ["10.png"], encoded_outside(np.eye(DIM, dtype=np.float32), [10]))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    assert post_references(client, upgrade_id, [1, 10]).is_success

    found = judged(worker, upgrade_id)

    assert found is not None
    assert found.attributes["origin"].tolist() == ["encoded", "imported"]


def test_metadata_that_tells_items_apart_is_an_attribute_and_no_other(
    client: TestClient, worker: WorkerParts, turn: np.ndarray
) -> None:
    register_h(client, turn)
    post_class_images(client, range(4))
    upgrade_id = start_upgrade(client, "v2")

    def metadata(number: int) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "camera": "ab"[number % 2],
            "raw": number % 3 == 0,
            "same": 1,
            "nested": {"x": number},
        }
        return fields | {f"own {number}": 1} | ({"rare": 1} if number == 7 else {}) | {"year": 2000 + number % 5}

    post_class_images(client, range(4, 64), metadata=metadata)
    found = judged(worker, upgrade_id)

    assert found is not None
    assert len(found) == 60
    named = {name: values for name, values in found.attributes.items() if name.startswith("metadata.")}
    assert set(named) == {"metadata.camera", "metadata.raw", "metadata.year"}
    assert named["metadata.camera"].tolist() == ["ab"[number % 2] for number in range(4, 64)]
    assert named["metadata.raw"].tolist() == ["true" if number % 3 == 0 else "false" for number in range(4, 64)]
    assert named["metadata.year"].tolist() == [str(2000 + number % 5) for number in range(4, 64)]


def test_so_many_at_most_are_drawn_by_seed(worker: WorkerParts, upgrade_id: int) -> None:
    drawn = [judged(worker, upgrade_id, most=2, seed=seed) for seed in (0, 0, 1, 2, 3)]

    ids = [tuple(found.ids.tolist()) for found in drawn if found is not None]
    assert {len(each) for each in ids} == {2}
    assert ids[0] == ids[1]
    assert len(set(ids)) > 1
