"""A POST with an `Idempotency-Key` is done once and answered as often as it is sent."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, create_engine, text
from starlette.types import Message, Receive, Scope, Send

from service.db import Database
from tests.networks import image_bytes
from tests.scenario import create_gallery, register_version
from tests.served import wait_for

PROBLEM = "application/problem+json"


@pytest.fixture
def ready(client: TestClient) -> TestClient:
    register_version(client, "v1")
    return client


def post_gallery(client: httpx.Client, key: str, name: str = "g", **options: object) -> httpx.Response:
    body = {"name": name, "model_version": "v1", **options}
    return client.post("/v1/galleries", json=body, headers={"Idempotency-Key": key})


def post_image(client: httpx.Client, key: str, seed: int, gallery: str = "g", **parameters: str) -> httpx.Response:
    return client.post(
        f"/v1/galleries/{gallery}/images",
        files={"files": ("x.png", image_bytes(seed))},
        headers={"Idempotency-Key": key},
        params=parameters,
    )


def revision(client: TestClient, gallery: str = "g") -> int:
    found: int = client.get(f"/v1/galleries/{gallery}").json()["revision"]
    return found


@contextmanager
def galleries_blocked(database: Database) -> Iterator[Connection]:
    """Let no request read or write the table of galleries: what starts inside is still running at the end."""
    with database.engine.connect() as connection:
        connection.execute(text("LOCK TABLE galleries IN ACCESS EXCLUSIVE MODE"))
        yield connection


def waiting(database: Database) -> int:
    """Return how many POSTs wait for the table of galleries."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO galleries%'"
    )
    with database.engine.connect() as connection:
        count: int = connection.execute(text(f"{query} AND datname = current_database()")).scalar_one()
        return count


def end_connections(connection: Connection, database: str | None = None) -> None:
    """End all other connections to a database: what it sees of a killed process.

    Those that wait for a lock come last: requests on them fail when nothing can be recorded any more.
    """
    others = (
        "SELECT pid FROM pg_stat_activity WHERE datname = coalesce(:database, current_database())"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY wait_event_type = 'Lock' OFFSET 0"
    )
    ended = connection.execute(text(f"SELECT pg_terminate_backend(pid, 5000) FROM ({others})"), {"database": database})
    ended.all()


def test_the_same_request_is_answered_again_and_not_done_again(ready: TestClient) -> None:
    first, second = post_gallery(ready, "k"), post_gallery(ready, "k")

    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content
    for header in ("location", "content-type"):
        assert second.headers[header] == first.headers[header]
    assert "idempotent-replay" not in first.headers
    assert second.headers["idempotent-replay"] == "true"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]


def test_a_form_sent_again_is_the_same_request_although_its_boundary_is_new(ready: TestClient) -> None:
    create_gallery(ready)

    answers = [post_image(ready, "k", seed=1) for _ in range(3)]

    assert len({answer.request.headers["content-type"] for answer in answers}) == 3
    assert len({answer.content for answer in answers}) == 1
    assert revision(ready) == 1


def test_a_refusal_is_kept_too(ready: TestClient) -> None:
    refused = post_gallery(ready, "k", metric="none")

    again = post_gallery(ready, "k", metric="none")

    assert (again.status_code, again.headers["content-type"]) == (422, PROBLEM)
    assert again.json() == refused.json()
    assert again.headers["idempotent-replay"] == "true"


def test_a_key_with_another_request_is_refused(ready: TestClient) -> None:
    create_gallery(ready)
    post_image(ready, "k", seed=1)

    body, query = post_image(ready, "k", seed=2), post_image(ready, "k", seed=1, more="1")

    for answer in (body, query):
        assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
        assert "another request" in answer.json()["detail"]
    assert revision(ready) == 1


def test_a_key_counts_for_one_path(ready: TestClient) -> None:
    for name in ("a", "b"):
        create_gallery(ready, name)

    answers = [post_image(ready, "k", seed=1, gallery=name) for name in ("a", "b")]

    assert [answer.headers.get("idempotent-replay") for answer in answers] == [None, None]
    assert (revision(ready, "a"), revision(ready, "b")) == (1, 1)


def test_what_is_no_key_is_refused(ready: TestClient) -> None:
    body = {"name": "g", "model_version": "v1"}

    for key in (b"", b"a b", b"x" * 256, b"\xe9", b"a\tb"):
        answer = ready.post("/v1/galleries", json=body, headers=[(b"idempotency-key", key)])

        assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    assert ready.get("/v1/galleries").json()["items"] == []


def test_a_path_that_no_row_can_hold_is_refused_as_without_a_key(ready: TestClient) -> None:
    answer = post_image(ready, "k", seed=1, gallery="a%00b")

    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)


def test_while_a_request_runs_its_key_is_409_and_then_answers_as_it_did(ready: TestClient, database: Database) -> None:
    with ThreadPoolExecutor() as threads:
        with galleries_blocked(database):
            running = threads.submit(post_gallery, ready, "k")
            wait_for(lambda: waiting(database) == 1)
            meanwhile = post_gallery(ready, "k")
        first = running.result()

    assert (meanwhile.status_code, meanwhile.headers["content-type"]) == (409, PROBLEM)
    assert meanwhile.json()["type"] == "urn:gallery-upgrade:request-still-runs"
    assert meanwhile.headers["retry-after"] == "1"
    assert first.status_code == 201
    assert post_gallery(ready, "k").content == first.content


def test_whoever_has_read_an_answer_can_send_the_request_again_at_once(ready: TestClient, database: Database) -> None:
    recorded: list[int | None] = []

    async def observed(scope: Scope, receive: Receive, send: Send) -> None:
        async def look_and_send(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                with database.engine.connect() as connection:
                    recorded.append(connection.scalar(text("SELECT status FROM idempotency_keys")))
            await send(message)

        await ready.app(scope, receive, look_and_send)

    answer = post_gallery(TestClient(observed), "k")

    assert answer.status_code == 201
    assert recorded == [201]


def test_a_search_is_never_replayed(ready: TestClient) -> None:
    create_gallery(ready)
    post_image(ready, "k", seed=1)

    def found() -> list[str]:
        answer = ready.post(
            "/v1/galleries/g/search?k=5",
            content=image_bytes(1),
            headers={"Idempotency-Key": "s", "Content-Type": "image/png"},
        )
        return [neighbor["id"] for neighbor in answer.json()["neighbors"]]

    before = found()
    ready.delete("/v1/galleries/g/items/x.png")

    assert (before, found()) == (["x.png"], [])


def test_what_was_answered_with_a_secret_is_done_once_and_the_secret_is_not_kept(
    client: TestClient, database: Database
) -> None:
    body, headers = {"name": "a program", "scopes": ["search"]}, {"Idempotency-Key": "once"}

    first, again = (client.post("/v1/keys", json=body, headers=headers) for _ in range(2))
    rotated, rotated_again = (client.post(f"/v1/keys/{first.json()['id']}/rotate", headers=headers) for _ in range(2))

    assert (first.status_code, again.status_code) == (201, 409)
    assert "revoke it, and make another" in again.json()["detail"]
    assert again.headers["content-type"] == "application/problem+json"
    assert (rotated.is_success, rotated_again.status_code) == (True, 409)
    assert len(client.get("/v1/keys").json()["items"]) == 2
    with database.session_scope() as session:
        kept = session.scalars(text("SELECT convert_from(body, 'UTF8') FROM idempotency_keys")).all()
    assert len(kept) == 2
    assert not any("gu_" in answer for answer in kept)


def test_a_request_whose_process_died_is_run_by_its_retry(ready: TestClient, database: Database) -> None:
    with ThreadPoolExecutor() as threads:
        with galleries_blocked(database) as connection:
            dying = threads.submit(post_gallery, ready, "k")
            wait_for(lambda: waiting(database) == 1)
            end_connections(connection)
        assert dying.result().status_code >= 500

    other, retry = post_gallery(ready, "k", name="other"), post_gallery(ready, "k")

    assert (other.status_code, retry.status_code) == (422, 201)
    assert "idempotent-replay" not in retry.headers
    assert post_gallery(ready, "k").headers["idempotent-replay"] == "true"


def test_a_failure_of_ours_frees_the_key(ready: TestClient, database: Database) -> None:
    with database.session_scope() as session:
        session.execute(text("ALTER TABLE galleries RENAME TO hidden"))
    failed = post_gallery(ready, "k")
    with database.session_scope() as session:
        session.execute(text("ALTER TABLE hidden RENAME TO galleries"))

    retry = post_gallery(ready, "k")

    assert (failed.status_code, retry.status_code) == (500, 201)


def test_a_database_that_is_away_is_503_with_a_key_as_without(ready: TestClient, database: Database) -> None:
    url = database.engine.url
    elsewhere = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with elsewhere.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false"))
        end_connections(connection, url.database)
        away = [ready.get("/v1/galleries"), post_gallery(ready, "k")]
        connection.execute(text(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true"))
    elsewhere.dispose()

    assert [(answer.status_code, answer.headers["retry-after"]) for answer in away] == [(503, "1")] * 2
    assert post_gallery(ready, "k").status_code == 201


def test_when_all_connections_are_taken_the_answer_is_503(ready: TestClient) -> None:
    database: Database = ready.app.state.parts.database  # type: ignore[attr-defined]  # Starlette's type has no state
    roomy = database.engine
    database.engine = create_engine(roomy.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with database.engine.connect():
        busy = [ready.get("/v1/galleries"), post_gallery(ready, "k")]
    database.engine.dispose()
    database.engine = roomy

    assert [(answer.status_code, answer.headers["retry-after"]) for answer in busy] == [(503, "1")] * 2
    assert post_gallery(ready, "k").status_code == 201


def test_an_answer_is_forgotten_after_a_day(ready: TestClient, database: Database) -> None:
    post_gallery(ready, "old", name="a")
    post_gallery(ready, "recent", name="b")
    ages = {"old": "24 hours 1 minute", "recent": "23 hours 59 minutes"}
    with database.session_scope() as session:
        for key, age in ages.items():
            update = "UPDATE idempotency_keys SET created_at = now() - CAST(:age AS interval) WHERE key = :key"
            session.execute(text(update), {"key": key, "age": age})

    old, recent = post_gallery(ready, "old", name="c"), post_gallery(ready, "recent", name="c")

    assert (old.status_code, recent.status_code) == (201, 422)
    with database.session_scope() as session:
        assert session.scalar(text("SELECT count(*) FROM idempotency_keys")) == 2


def test_many_requests_with_keys_at_once_leave_connections_for_their_work(ready: TestClient) -> None:
    create_gallery(ready)
    with ThreadPoolExecutor(80) as threads:
        keyed = [threads.submit(post_gallery, ready, f"k{number}", f"g{number}") for number in range(80)]
        plain = [threads.submit(ready.get, "/v1/galleries/g") for _ in range(20)]

        assert {request.result().status_code for request in keyed} == {201}
        assert {request.result().status_code for request in plain} == {200}


def test_one_key_sent_many_times_at_once_is_done_once(ready: TestClient) -> None:
    with ThreadPoolExecutor(20) as threads:
        sent = [threads.submit(post_gallery, ready, "k") for _ in range(20)]
        answers = [request.result() for request in sent]

    assert {answer.status_code for answer in answers} <= {201, 409}
    done = [answer for answer in answers if answer.status_code == 201]
    assert len({answer.content for answer in done}) == 1
    assert sum("idempotent-replay" not in answer.headers for answer in done) == 1
