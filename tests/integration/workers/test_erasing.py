"""An erasure leaves nothing of an item in the database and the data folder, and says where it was."""

import json
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.advisory_locks import AdvisoryLock
from service.audit import Wanted, list_entries, verify
from service.canonical_json import digest_of
from service.domain.erasure.work import EraserParts, advance_erasure
from service.domain.gallery.generations import GenerationKey
from service.domain.indexes.builds import build_generation_index
from service.settings import Settings
from tests.erasures import ask_for_erasure, erase, found_in, places_of
from tests.judged import post_query_vectors
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    import_vectors,
    register_transformation,
    register_version,
    search,
    start_upgrade,
)
from tests.working import cut_over, run_until
from workers.app import WorkerParts
from workers.erasing import advance_an_erasure
from workers.sweep import remove_old_queries

ERASED = "person-4711"
IMAGE = image_bytes(0)
OTHERS = [f"other-{number}" for number in range(1, 8)]


def post_people(client: TestClient) -> None:
    """Post an image of the one that is erased and of others, under a key that keeps the answer."""
    ids = [ERASED, *OTHERS]
    files = [("files", (f"{number}.png", image_bytes(number), "image/png")) for number in range(len(ids))]
    items = [{"id": id_, "metadata": {"who": f"name of {id_}"}} for id_ in ids]
    answer = client.post(
        "/v1/galleries/g/images",
        files=files,
        data={"items": json.dumps(items)},
        headers={"Idempotency-Key": "posted-once"},
    )
    assert answer.status_code == 200, answer.text


def post_queries(client: TestClient) -> None:
    said = [
        {"id": "the same image", "item_id": ERASED, "relevant": [OTHERS[0]]},
        {"id": "finds others too", "relevant": [ERASED, OTHERS[0]]},
        {"id": "finds nothing else", "relevant": [ERASED]},
    ]
    files = [("files", (f"{number}.png", image, "image/png")) for number, image in enumerate([IMAGE, *_images(8, 9)])]
    data = {"name": "images", "queries": json.dumps(said)}
    assert client.post("/v1/galleries/g/query-sets", files=files, data=data).status_code == 201
    vector = np.full((1, 6), 0.4711, np.float32)
    columns: dict[str, Any] = {"id": ["vector"], "item_id": [ERASED], "relevant": [[OTHERS[0]]]}
    assert post_query_vectors(client, "v1", vector, name="vectors", **columns).status_code == 201


def _images(*seeds: int) -> list[bytes]:
    return [image_bytes(seed) for seed in seeds]


def keep_traces(client: TestClient, worker: WorkerParts, upgrade_id: int) -> None:
    """Leave what searches, judging, failed ingests and failed upgrades leave of an item."""
    references = {"files": ("0.png", IMAGE)}, {"items": json.dumps([{"id": ERASED}])}
    answer = client.post(f"/v1/upgrades/{upgrade_id}/references", files=references[0], data=references[1])
    assert answer.json()["results"][0]["status"] == "accepted"
    search(client, 0)
    client.app.state.parts.query_samples.write()  # type: ignore[attr-defined] # starlette's client says ASGI alone
    with worker.database.session_scope() as session:
        for statement in (
            "INSERT INTO shadowed_queries (gallery_id, from_version_id, to_version_id, to_generation_id,"
            " embedding_from, embedding_to, answers_before, answers_after)"
            " SELECT q.gallery_id, q.model_version_id, u.to_version_id, 2, q.vector, q.vector, '{}', '{}'"
            " FROM query_samples q, (SELECT max(id) AS to_version_id FROM model_versions) u",
            "INSERT INTO jobs (kind, state, gallery_id, error)"
            f" VALUES ('image_ingest', 'failed', 1, 'A batch with ''{ERASED}'' failed.')",
            "INSERT INTO ingest_references (job_id, position, external_id, image_uri, metadata, reason)"
            f" SELECT max(id), 0, '{ERASED}', 'file:///x', '{{}}', 'gone' FROM jobs",
            f"UPDATE upgrade_events SET error = 'It cannot be upgraded: of ''{ERASED}'' the embedding.' WHERE id = 1",
        ):
            session.execute(text(statement))


def vectors_of(worker: WorkerParts) -> dict[str, bytes]:
    """Return what is to be looked for of the item's vectors: the rows as text, and the bytes of each."""
    found = {}
    with worker.database.session_scope() as session:
        for generation in (1, 2):
            (row,) = session.execute(
                text(
                    "SELECT e.embedding::text AS written, e.embedding::real[] AS numbers"
                    f" FROM embeddings_{generation} e JOIN items i ON i.id = e.item_id"
                    f" WHERE i.external_id = '{ERASED}'"
                )
            ).all()
            found[f"text of generation {generation}"] = row.written.encode()
            found[f"bytes of generation {generation}"] = np.array(row.numbers, "<f4").tobytes()
        reference = "SELECT embedding_from FROM reference_pairs p JOIN items i ON i.id = p.item_id"
        found["as a reference"] = session.scalars(text(f"{reference} WHERE i.external_id = '{ERASED}'")).one()
        found["as asked"] = session.scalars(text("SELECT vector FROM query_samples")).one()
    return found


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"shadow_share": 0.0})  # what is shadowed is put there


@pytest.fixture
def upgrade_id(client: TestClient, worker: WorkerParts) -> int:
    """An upgrade that is ready, of a gallery that keeps images; both generations have index files."""
    for version in ("v1", "v2"):
        register_version(client, version)
    register_transformation(client, "v1", "v2")
    create_gallery(client, probe_images=100)
    post_people(client)
    post_queries(client)
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    build_generation_index(worker.database, worker.engine, GenerationKey(1, 1))
    keep_traces(client, worker, upgrade_id)
    return upgrade_id


def test_nothing_of_an_item_is_left_in_any_table_or_file(
    client: TestClient, worker: WorkerParts, upgrade_id: int
) -> None:
    data = worker.settings.data
    needles = {"id": ERASED.encode(), "image": IMAGE, "query": np.float32(0.4711).tobytes() * 6, **vectors_of(worker)}
    before = {name: found_in(worker.database, data, needle) for name, needle in needles.items()}
    indexes = {path.name for path in (data / "blobs" / "indexes").iterdir()}

    job = erase(client, worker, gallery="g", ids=[ERASED])

    assert {
        "items.external_id",
        "judged_queries.item_external_id",
        "judged_queries.relevant",
        "ingest_references.external_id",
        "idempotency_keys.body",
        "upgrade_events.error",
        "jobs.error",
    } <= before["id"]
    assert "probe_images.image" in before["image"]
    assert any(place.startswith("blobs/artifacts") for place in before["image"])
    assert before["query"] == {"query_vectors.vector"}
    assert "reference_pairs.embedding_from" in before["as a reference"]
    assert {"query_samples.vector", "shadowed_queries.embedding_to"} <= before["as asked"]
    assert before["text of generation 1"] == {"embeddings_1.embedding"}
    assert before["text of generation 2"] == {"embeddings_2.embedding"}
    assert len(before["bytes of generation 1"] | before["bytes of generation 2"]) == len(indexes) == 2
    assert job["state"] == "succeeded", job
    assert [name for name, needle in needles.items() if found_in(worker.database, data, needle)] == []
    assert not indexes & {path.name for path in (data / "blobs" / "indexes").iterdir()}


def test_the_proof_counts_each_place_and_is_in_the_audit(
    client: TestClient, worker: WorkerParts, upgrade_id: int
) -> None:
    job = erase(client, worker, gallery="g", ids=[ERASED])

    places = places_of(job)
    assert all(remains == 0 for _, _, remains in places.values())
    expected = {
        "items": 1,
        "items.thumbnail": 1,
        "embeddings_1": 1,
        "embeddings_2": 1,
        "reference_pairs": 1,
        "probe_images": 1,
        "judged_queries": 3,
        "judged_queries.relevant": 1,
        "query_samples": 1,
        "shadowed_queries": 1,
        "ingest_references": 1,
        "idempotency_keys": 1,
        "sentences of errors": 2,
        "images of queries": 2,
        "index of generation 1": 1,
        "index of generation 2": 1,
    }
    removed = {place: removed for place, (_, removed, _) in places.items()}
    assert removed.pop("query_vectors") >= 1  # the one that was given, and those that judging made of the images
    assert removed == expected
    assert {"PostgreSQL's files", "backups", "rows of trainings"} <= {left["place"] for left in job["result"]["left"]}
    proof = {name: value for name, value in job["result"].items() if name != "sha256"}
    assert job["result"]["sha256"] == digest_of(proof)
    assert (proof["asked_for"]["ids"], proof["asked_for"]["ids_sha256"]) == (1, digest_of([ERASED]))
    with worker.database.session_scope() as session:
        asked, done = [
            entry for entry in list_entries(session, Wanted("default"), 0, 100) if entry.action.startswith("erasure")
        ]
        assert verify(session).fault is None
    assert (asked.subject, done.subject) == ("g", "g")
    total = sum(removed for _, removed, _ in places.values())
    assert done.after == {"job": job["id"], "removed": total, "sha256": job["result"]["sha256"]}


def test_the_upgrade_and_the_searches_go_on(client: TestClient, worker: WorkerParts, upgrade_id: int) -> None:
    erase(client, worker, gallery="g", ids=[ERASED, OTHERS[0]])

    assert {neighbor["id"] for neighbor in search(client, 0, k=10)["neighbors"]} == set(OTHERS[1:])
    cut_over(client, worker, upgrade_id)
    answer = search(client, 0, k=10)
    assert answer["model_version"] == "v2"
    assert {neighbor["id"] for neighbor in answer["neighbors"]} == set(OTHERS[1:])
    post_again = {"files": ("x.png", IMAGE)}, {"items": json.dumps([{"id": ERASED}])}
    again = client.post("/v1/galleries/g/images", files=post_again[0], data=post_again[1])
    assert again.json()["results"][0]["status"] == "created"


def test_what_a_batch_writes_of_an_erased_item_is_removed_too(
    client: TestClient, worker: WorkerParts, upgrade_id: int
) -> None:
    """A batch that had read the item before may write its row after the item went."""
    job_id = ask_for_erasure(client, gallery="g", ids=[ERASED])
    with worker.database.session_scope() as session:
        (item_id,) = session.scalars(text(f"SELECT id FROM items WHERE external_id = '{ERASED}'")).all()
        session.execute(text(f"CREATE TABLE written AS SELECT * FROM embeddings_2 WHERE item_id = {item_id}"))
    parts = EraserParts(worker.database, worker.blobs, worker.engine, wait_seconds=1.0)
    assert advance_erasure(parts, job_id)
    with worker.database.session_scope() as session:
        session.execute(text("INSERT INTO embeddings_2 SELECT * FROM written"))
        session.execute(text("DROP TABLE written"))

    while advance_erasure(parts, job_id):
        pass

    job = client.get(f"/v1/jobs/{job_id}").json()
    assert places_of(job)["embeddings_2"] == (2, 2, 0)


def test_an_erasure_waits_for_an_index_that_is_being_built(
    client: TestClient, worker: WorkerParts, upgrade_id: int
) -> None:
    job_id = ask_for_erasure(client, gallery="g", ids=[ERASED])

    with worker.database.advisory_lock(AdvisoryLock.REBUILD):
        assert not advance_an_erasure(worker, job_id)
        waits = client.get(f"/v1/jobs/{job_id}").json()
    while advance_an_erasure(worker, job_id):
        pass

    assert (waits["state"], "index is being built" in waits["error"]) == ("running", True)
    ended = client.get(f"/v1/jobs/{job_id}").json()
    assert (ended["state"], ended["error"]) == ("succeeded", None)


def test_nothing_of_a_gallery_is_left(client: TestClient, worker: WorkerParts, upgrade_id: int) -> None:
    cut_over(client, worker, upgrade_id)
    needles = {"id": ERASED.encode(), "image": IMAGE, **vectors_of(worker)}

    job = erase(client, worker, gallery="g")

    data = worker.settings.data
    assert [name for name, needle in needles.items() if found_in(worker.database, data, needle)] == []
    places = places_of(job)
    assert places["items"] == places["embeddings_1"] == places["embeddings_2"] == (8, 8, 0)
    assert places["indexes"] == (2, 2, 0)
    assert list((data / "blobs" / "indexes").iterdir()) == []
    check_problem(client.get("/v1/galleries/g"), 404)


def test_a_gallery_with_an_open_upgrade_is_not_erased_as_a_whole(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, OTHERS)
    upgrade_id = start_upgrade(client, "v2")

    refused = client.post("/v1/erasures", json={"gallery": "g"})

    assert f"Upgrade {upgrade_id}" in check_problem(refused, 409)


def test_an_upgrade_that_was_opened_since_fails_the_erasure_of_its_gallery(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, OTHERS)
    job_id = ask_for_erasure(client, gallery="g")
    upgrade_id = start_upgrade(client, "v2")

    advance_an_erasure(worker, job_id)

    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "failed"
    assert f"Upgrade {upgrade_id} of gallery 'g' is open" in job["error"]
    assert client.get("/v1/galleries/g").json()["items"] == len(OTHERS)


def test_a_tenant_is_erased_gallery_by_gallery(client: TestClient, worker: WorkerParts) -> None:
    register_version(client, "v1")
    for name in ("a", "b"):
        create_gallery(client, name)
        import_vectors(client, [ERASED], name)

    job = erase(client, worker, tenant="default")

    assert [each["gallery"] for each in job["result"]["places"] if each["place"] == "items"] == ["a", "b"]
    assert job["progress"]["erasing"]["done"] == 2
    assert client.get("/v1/galleries").json()["items"] == []
    assert found_in(worker.database, worker.settings.data, ERASED.encode()) == set()


def test_an_id_that_nobody_knows_is_looked_for_and_an_item_that_was_deleted_is_found(
    client: TestClient, worker: WorkerParts
) -> None:
    register_version(client, "v1")
    create_gallery(client)
    import_vectors(client, [ERASED, "other"])
    assert client.delete(f"/v1/galleries/g/items/{ERASED}").status_code == 204

    unknown = erase(client, worker, gallery="g", ids=["nobody"])
    deleted = erase(client, worker, gallery="g", ids=[ERASED])

    assert places_of(unknown)["items"] == (0, 0, 0)
    assert places_of(deleted)["items"] == (1, 1, 0)
    assert found_in(worker.database, worker.settings.data, ERASED.encode()) == set()
    assert client.get("/v1/galleries/g").json()["items"] == 1


def test_an_item_that_is_written_again_meanwhile_is_told(client: TestClient, worker: WorkerParts) -> None:
    register_version(client, "v1")
    create_gallery(client)
    import_vectors(client, [ERASED])
    job_id = ask_for_erasure(client, gallery="g", ids=[ERASED])
    parts = EraserParts(worker.database, worker.blobs, worker.engine, wait_seconds=1.0)
    assert advance_erasure(parts, job_id)
    import_vectors(client, [ERASED])

    while advance_erasure(parts, job_id):
        pass

    places = {each["place"]: each for each in client.get(f"/v1/jobs/{job_id}").json()["result"]["places"]}
    assert (places["items"]["removed"], places["items"]["remains"]) == (1, 1)
    assert "written again" in places["items"]["why"]


WRONG = {
    "nothing": {},
    "a gallery and a tenant": {"gallery": "g", "tenant": "default"},
    "ids of a tenant": {"tenant": "default", "ids": ["a"]},
    "no ids": {"gallery": "g", "ids": []},
    "an id that cannot be": {"gallery": "g", "ids": ["a\n"]},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_say_what_to_erase_is_refused(client: TestClient, what: str) -> None:
    register_version(client, "v1")
    create_gallery(client)

    check_problem(client.post("/v1/erasures", json=WRONG[what]), 422)


def test_what_is_not_there_is_404_and_an_erasure_cannot_be_cancelled(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)

    check_problem(client.post("/v1/erasures", json={"gallery": "other"}), 404)
    check_problem(client.post("/v1/erasures", json={"tenant": "other"}), 404)
    job_id = ask_for_erasure(client, gallery="g")
    assert "goes on" in check_problem(client.post(f"/v1/jobs/{job_id}/cancel"), 409)


def test_queries_are_kept_for_so_many_days(client: TestClient, worker: WorkerParts, upgrade_id: int) -> None:
    tables = {"query_samples": "asked_at", "shadowed_queries": "at"}

    def kept() -> list[int]:
        with worker.database.session_scope() as session:
            return [session.scalars(text(f"SELECT count(*) FROM {table}")).one() for table in tables]

    remove_old_queries(worker)
    assert kept() == [1, 1]
    longer = {"seconds": worker.settings.query_retention_days * 86_401}
    with worker.database.session_scope() as session:
        for table, column in tables.items():
            session.execute(text(f"UPDATE {table} SET {column} = now() - make_interval(secs => :seconds)"), longer)

    remove_old_queries(worker)

    assert kept() == [0, 0]
