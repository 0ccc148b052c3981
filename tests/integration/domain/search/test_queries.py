"""What a search finds: within a distance, without an item, by items, and in which generation."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.upgrade.cutover import request_cutover
from tests.fakes import UnloadedReplicas, WatchedIndex
from tests.items import check_same, embedding_of, found
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    import_vectors,
    post_images,
    register_transformation,
    register_version,
    search,
    start_upgrade,
)
from tests.served import wait_for
from tests.working import cut_over, run_until
from workers.app import WorkerParts

if TYPE_CHECKING:
    import httpx

    from service.api.dependencies import Parts

SEARCH = "/v1/galleries/g/search"


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has 8 images."""
    register_version(client, "v1")
    create_gallery(client)
    post_images(client, range(8))
    return client


def ids_of(neighbors: list[dict[str, Any]]) -> list[str]:
    return [neighbor["id"] for neighbor in neighbors]


def by_items(client: TestClient, ids: list[str], which: str = "active", **options: Any) -> dict[str, Any]:
    answer = client.post(f"{SEARCH}/items", json={"ids": ids, "k": 20, **options}, params={"generation": which})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def by_every_form(client: TestClient, seed: int, **options: Any) -> list[str]:
    """Return what a search by an image finds: as a form, as a raw body, and by its vector, which must agree."""
    image, k = image_bytes(seed), options.pop("k", 20)
    vector = embeddings(client)[f"image-{seed}.png"]
    form = client.post(SEARCH, files={"file": ("q", image)}, data={"k": str(k), **options})
    raw = client.post(SEARCH, params={"k": k, **options}, content=image)
    vectors = client.post(f"{SEARCH}/vectors", json={"vectors": [vector, vector], "k": k, **options})
    assert [answer.status_code for answer in (form, raw, vectors)] == [200, 200, 200]
    batch = vectors.json()["neighbors"]
    answers = [ids_of(n) for n in (form.json()["neighbors"], raw.json()["neighbors"], *batch)]
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def embeddings(client: TestClient, generation: int = 1) -> dict[str, list[float]]:
    """Return what a generation has stored of each item."""
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # an ASGI application that is a FastAPI
    query = text(
        f"SELECT i.external_id, e.embedding::text FROM embeddings_{generation} e JOIN items i ON i.id = e.item_id"
    )
    with parts.database.session_scope() as session:
        return {id_: json.loads(embedding) for id_, embedding in session.execute(query)}


def test_neighbours_farther_than_the_largest_distance_are_left_out(gallery: TestClient) -> None:
    everything = search(gallery, 3, k=8)["neighbors"]
    limit = (everything[2]["distance"] + everything[3]["distance"]) / 2

    near = by_every_form(gallery, 3, max_distance=limit)

    assert near == ids_of(everything[:3])
    assert by_every_form(gallery, 3, max_distance=limit, k=2) == ids_of(everything[:2])
    assert by_every_form(gallery, 3, max_distance=-1) == []
    assert ids_of(by_items(gallery, ["image-3.png"], max_distance=limit)["neighbors"][0]) == ids_of(everything[1:3])


def test_a_neighbour_at_the_largest_distance_is_kept(gallery: TestClient) -> None:
    vector = embeddings(gallery)["image-3.png"]
    everything = gallery.post(f"{SEARCH}/vectors", json={"vectors": [vector]}).json()["neighbors"][0]

    body = {"vectors": [vector], "max_distance": everything[4]["distance"]}
    found = gallery.post(f"{SEARCH}/vectors", json=body).json()["neighbors"][0]

    assert found == everything[:5]


def test_an_inner_products_distance_may_be_negative(gallery: TestClient) -> None:
    create_gallery(gallery, "products", metric="ip")
    post_images(gallery, range(8), gallery="products")
    everything = search(gallery, 3, gallery="products", k=8)["neighbors"]
    limit = (everything[0]["distance"] + everything[1]["distance"]) / 2

    answer = gallery.post(
        "/v1/galleries/products/search", params={"max_distance": limit, "k": 8}, content=image_bytes(3)
    )

    assert limit < 0
    assert ids_of(answer.json()["neighbors"]) == ids_of(everything[:1])


def test_an_excluded_item_leaves_its_place_to_the_next(gallery: TestClient) -> None:
    everything = ids_of(search(gallery, 3, k=8)["neighbors"])

    assert by_every_form(gallery, 3, k=3, exclude_id="image-3.png") == everything[1:4]
    assert by_every_form(gallery, 3, k=3, exclude_id=everything[7]) == everything[:3]
    assert by_every_form(gallery, 3, exclude_id=everything[4]) == everything[:4] + everything[5:]
    assert by_every_form(gallery, 3, exclude_id="none such") == everything


def test_an_item_finds_what_its_embedding_finds_but_not_itself(gallery: TestClient) -> None:
    stored = embeddings(gallery)
    ids = ["image-5.png", "image-2.png", "image-5.png"]
    vectors = [stored[id_] for id_ in ids]
    expected = gallery.post(f"{SEARCH}/vectors", json={"vectors": vectors, "k": 20}).json()

    with_themselves = by_items(gallery, ids, exclude_self=False)
    others = by_items(gallery, ids)

    assert with_themselves == expected
    assert others == expected | {"neighbors": [neighbors[1:] for neighbors in expected["neighbors"]]}
    assert [len(neighbors) for neighbors in by_items(gallery, ids, k=4)["neighbors"]] == [4, 4, 4]


def test_copies_of_an_item_are_its_neighbours(gallery: TestClient) -> None:
    for name in ("copy a", "copy b"):
        gallery.post("/v1/galleries/g/images", files=[("files", (name, image_bytes(4)))])

    nearest = by_items(gallery, ["copy a", "image-4.png"], k=2)["neighbors"]

    assert [ids_of(neighbors) for neighbors in nearest] == [["image-4.png", "copy b"], ["copy a", "copy b"]]
    assert all(neighbor["distance"] == 0 for neighbors in nearest for neighbor in neighbors)


def test_a_search_by_item_takes_a_filter(gallery: TestClient) -> None:
    condition = {"and": [{"label": "class 1"}, {"metadata.seed": {"in": [1, 4, 5]}}]}

    found = by_items(gallery, ["image-1.png", "image-0.png"], filter=condition)["neighbors"]

    assert ids_of(found[0]) == ["image-4.png"]
    assert sorted(ids_of(found[1])) == ["image-1.png", "image-4.png"]


def test_an_item_is_searched_by_what_it_is_now_and_not_after_its_deletion(gallery: TestClient) -> None:
    files = [("files", ("image-1.png", image_bytes(2)))]
    gallery.post("/v1/galleries/g/images", files=files)
    nearest = by_items(gallery, ["image-1.png"], k=1)["neighbors"][0][0]
    gallery.delete("/v1/galleries/g/items/image-2.png")

    answer = gallery.post(f"{SEARCH}/items", json={"ids": ["image-1.png", "image-2.png"]})

    assert (nearest["id"], nearest["distance"]) == ("image-2.png", 0)
    assert "no item 'image-2.png'" in check_problem(answer, 404)


def test_an_item_is_searched_by_its_embedding_in_the_generation_that_answers(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(8))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    body = {"vectors": [embeddings(client, 2)["image-3.png"]], "k": 20, "model_version": "v2"}
    expected = client.post(f"{SEARCH}/vectors", json=body, params={"generation": "next"}).json()

    candidate = by_items(client, ["image-3.png"], "next", exclude_self=False)

    assert candidate == expected
    assert candidate["model_version"] == "v2"
    assert by_items(client, ["image-3.png"])["model_version"] == "v1"


def test_an_item_that_the_candidate_has_not_yet_is_409_there(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(8))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE embeddings_2 SET revision = 0 WHERE item_id = 4"))

    answer = client.post(f"{SEARCH}/items", json={"ids": ["image-3.png"]}, params={"generation": "next"})

    assert "'image-3.png' has no current embedding" in check_problem(answer, 409)
    assert by_items(client, ["image-3.png"])["generation"] == 1


def test_vectors_of_a_space_that_does_not_serve_are_refused_through_a_cutover_and_back(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(8))
    import_vectors(client, ["vector"])

    def statuses(**parameters: str) -> list[int]:
        """Ask by vectors of v1 and of v2, with and without their version's name."""
        bodies = [
            {"vectors": [[1.0] * dim], **named}
            for version, dim in (("v1", 6), ("v2", 8))
            for named in ({"model_version": version}, {})
        ]
        answers = [client.post(f"{SEARCH}/vectors", json=body, params=parameters) for body in bodies]
        for answer, version in zip(answers, ("v1", "v1", "v2", "v2"), strict=True):
            assert answer.status_code != 200 or answer.json()["model_version"] == version
        return [answer.status_code for answer in answers]

    v1_serves, v2_serves = [200, 200, 409, 422], [409, 422, 200, 200]
    assert statuses() == v1_serves
    assert statuses(generation="next") == [409] * 4
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    assert statuses() == v1_serves
    assert statuses(generation="next") == v2_serves
    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    run_until(worker, client, upgrade_id, "live")
    wait_for(lambda: search(client, 1)["model_version"] == "v2")
    assert statuses() == v2_serves
    assert client.post(f"/v1/upgrades/{upgrade_id}/rollback").status_code == 200
    wait_for(lambda: search(client, 1)["model_version"] == "v1")
    assert statuses() == v1_serves


def test_an_answer_from_few_rows_says_that_it_is_exact(gallery: TestClient) -> None:
    vector = embeddings(gallery)["image-1.png"]

    answers = [
        search(gallery, 1),
        gallery.post(SEARCH, params={"filter": '{"label": "class 1"}'}, content=image_bytes(1)).json(),
        gallery.post(f"{SEARCH}/vectors", json={"vectors": [vector]}).json(),
        by_items(gallery, ["image-1.png"]),
    ]

    assert [answer["exact"] for answer in answers] == [True] * 4


def test_an_answer_by_a_walked_graph_says_that_it_is_not_exact_and_a_filtered_one_that_it_is(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, [f"v-{number}" for number in range(3_000)])
    post_images(client, range(8))
    worker.settings.flat_below_rows = 1_000
    worker.settings.batch_items = 2_000
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")

    walked = by_items(client, ["image-1.png"], "next", k=5)
    filtered = by_items(
        client, ["image-1.png"], "next", k=5, filter={"label": {"in": ["class 0", "class 1", "class 2"]}}
    )

    assert (walked["exact"], len(walked["neighbors"][0])) == (False, 5)
    assert filtered["exact"]
    assert len(filtered["neighbors"][0]) == 5
    assert all(neighbor["label"] for neighbor in filtered["neighbors"][0])


def test_an_image_and_its_vector_get_the_same_answer(gallery: TestClient) -> None:
    post_images(gallery, range(8))
    queries = [embedding_of(gallery, seed) for seed in (3, 40)]

    by_image = [search(gallery, seed, k=8) for seed in (3, 40)]
    by_vectors = gallery.post("/v1/galleries/g/search/vectors", json={"vectors": queries, "k": 8}).json()

    for neighbors, answer in zip(by_vectors["neighbors"], by_image, strict=True):
        check_same(neighbors, answer["neighbors"])
    assert {key: by_vectors[key] for key in ("model_version", "generation", "revision")} == {
        key: by_image[0][key] for key in ("model_version", "generation", "revision")
    }
    assert found(by_image[0])[0] == "image-3.png"


def test_an_answer_says_no_later_revision_than_it_was_searched_at(gallery: TestClient) -> None:
    before = gallery.get("/v1/galleries/g").json()["revision"]
    parts: Parts = gallery.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    served = parts.replicas.active(1, 1)
    served.index = WatchedIndex(served.index, after_search=lambda: post_images(gallery, [20]))

    answer = search(gallery, 20, k=50)

    assert "image-20.png" not in [neighbor["id"] for neighbor in answer["neighbors"]]
    assert answer["revision"] == before


def test_those_who_ask_at_once_are_each_answered_as_if_alone(gallery: TestClient) -> None:
    parts: Parts = gallery.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    vectors = list(embeddings(gallery).values()) * 4
    goes, searches = threading.Event(), itertools.count()

    def ask(vector: list[float]) -> "httpx.Response":
        answer: httpx.Response = gallery.post(f"{SEARCH}/vectors", json={"vectors": [vector], "k": 3})
        return answer

    def held() -> None:
        next(searches)
        assert goes.wait(30)

    def all_but_the_first_wait() -> bool:
        return sum(len(line.waiting) for line in parts.vector_queries._lines.values()) >= len(vectors) - 8

    alone = [ask(vector).json() for vector in vectors]
    before = parts.search.rates.of(1)
    served = parts.replicas.active(1, 1)
    served.index = WatchedIndex(served.index, after_search=held)
    with ThreadPoolExecutor(len(vectors) + 1) as clients:
        together = [clients.submit(ask, vector) for vector in [*vectors, [0.5] * 5]]
        wait_for(all_but_the_first_wait)
        goes.set()
        *answers, refused = [each.result() for each in together]

    assert [answer.json() for answer in answers] == alone
    assert "Query vectors have 6 numbers" in check_problem(refused, 422)
    assert next(searches) < len(vectors)
    after = parts.search.rates.of(1)
    assert before is not None
    assert after is not None
    assert after.per_second == pytest.approx(2 * before.per_second)


def test_a_search_while_no_generation_is_loaded_is_repeated_and_then_503(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)
    post_images(client, range(3))
    let_searches_miss(client, 2)
    answer = search(client, 1)
    let_searches_miss(client, 1_000)
    refused = client.post("/v1/galleries/g/search/vectors", json={"vectors": [[0.0] * 6], "k": 1})

    assert answer["neighbors"][0]["id"] == "image-1.png"
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_a_generation_is_asked_by_its_id_while_it_is_stored(gallery: TestClient, worker: WorkerParts) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    post_images(gallery, range(3))
    old = search(gallery, 1)["generation"]
    upgrade_id = start_upgrade(gallery, "v2")
    new = gallery.get(f"/v1/upgrades/{upgrade_id}").json()["to_generation"]
    unbuilt = gallery.post("/v1/galleries/g/search/items", params={"generation": new}, json={"ids": ["image-1.png"]})
    run_until(worker, gallery, upgrade_id, "ready")
    candidate = search(gallery, 1, generation=new)
    cut_over(gallery, worker, upgrade_id)
    pinned = {which: search(gallery, 1, generation=which)["generation"] for which in (old, new)}
    gallery.post(f"/v1/upgrades/{upgrade_id}/finalize")
    gone = gallery.post("/v1/galleries/g/search/items", params={"generation": old}, json={"ids": ["image-1.png"]})
    never = gallery.post("/v1/galleries/g/search/items", params={"generation": 999}, json={"ids": ["image-1.png"]})

    assert f"Generation {new} has no index" in check_problem(unbuilt, 409)
    assert (candidate["generation"], candidate["model_version"]) == (new, "v2")
    assert pinned == {old: old, new: new}
    assert f"Generation {old} of this gallery is not stored; {new} is active" in check_problem(gone, 410)
    check_problem(never, 410)


def let_searches_miss(client: TestClient, times: int) -> None:
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    replicas = UnloadedReplicas(parts.engine.follow(parts.search.encoders), times)
    client.app.state.parts = replace(parts, search=replace(parts.search, replicas=replicas))  # type: ignore[attr-defined]  # untyped state
