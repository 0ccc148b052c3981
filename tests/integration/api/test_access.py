"""Keys over HTTP: who is served, what a refusal tells, and how long a key and a browser's session hold."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.access import known_keys
from service.api.access import COOKIE
from service.db import Database
from service.settings import Settings
from tests.keys import ADMIN_KEY, bearer, guarded_client, make_key
from tests.served import wait_for

SESSION = "/v1/session"
FROM_A_SCRIPT = {"X-Requested-With": "fetch"}


@pytest.fixture
def guarded(settings: Settings) -> Iterator[TestClient]:
    with guarded_client(settings) as client:
        yield client


def test_without_a_key_nothing_is_served_but_what_tells_nothing(guarded: TestClient) -> None:
    wait_for(lambda: guarded.get("/readyz").status_code == 200)
    open_to_all = {path: guarded.get(path).status_code for path in ("/livez", "/readyz", "/", "/docs", "/openapi.json")}
    refused = [guarded.get(path) for path in ("/v1/galleries", "/metrics", "/v1/nothing", SESSION)]

    assert set(open_to_all.values()) == {200}
    assert {answer.status_code for answer in refused} == {401}
    assert {answer.headers["www-authenticate"] for answer in refused} == {"Bearer"}
    assert {answer.headers["content-type"] for answer in refused} == {"application/problem+json"}


def test_a_key_is_shown_in_either_header(guarded: TestClient) -> None:
    key = make_key(guarded, "read")["key"]

    answers = [guarded.get(SESSION, headers=headers) for headers in (bearer(key), {"api-key": key})]

    assert [answer.json()["scopes"] for answer in answers] == [["read"], ["read"]]


def test_a_key_that_is_wrong_in_any_part_is_refused(guarded: TestClient) -> None:
    key = make_key(guarded, "admin")["key"]
    other_secret = key[:-1] + ("a" if key[-1] != "a" else "b")
    other_id = "gu_00000000" + key[11:]
    wrong = [
        bearer(other_secret),
        bearer(other_id),
        bearer(key[:-1]),
        bearer(f"{key}a"),
        {"Authorization": f"Basic {key}"},
    ]

    codes = {guarded.get(SESSION, headers=headers).status_code for headers in wrong}

    assert codes == {401}
    assert guarded.get(SESSION, headers=bearer(key)).status_code == 200


def test_scopes_are_asked_for_before_anything_is_looked_up_or_read(guarded: TestClient) -> None:
    headers = bearer(make_key(guarded, "search")["key"])

    lost = guarded.post("/v1/upgrades/1/cutover", headers=headers)
    unread = guarded.post("/v1/galleries", headers=headers | {"content-type": "application/json"}, content=b"no JSON")
    unknown = guarded.get("/v1/nothing", headers=headers)

    assert (lost.status_code, unread.status_code, unknown.status_code) == (403, 403, 404)
    assert "'cutover'" in lost.json()["detail"]
    assert "'write'" in unread.json()["detail"]


def test_a_secret_is_in_no_row_and_shown_once(guarded: TestClient, database: Database) -> None:
    again = bearer(ADMIN_KEY) | {"Idempotency-Key": "i"}
    made = [
        make_key(guarded, "read"),
        guarded.post("/v1/keys", json={"name": "k", "scopes": ["read"]}, headers=again).json(),
    ]
    secrets = [each["key"][12:] for each in made]

    listed = guarded.get("/v1/keys", headers=bearer(ADMIN_KEY))
    with database.reading() as connection:
        rows = str(connection.execute(text("SELECT k::text FROM api_keys k")).all())
        answers = str(connection.execute(text("SELECT convert_from(body, 'UTF8') FROM idempotency_keys")).all())

    for secret in secrets:
        assert secret not in listed.text
        assert secret not in rows
        assert secret not in answers
    assert "carried out before" in answers


def test_a_revoked_key_is_refused_once_what_is_remembered_is_old(
    guarded: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_key(guarded, "read")
    before = guarded.get(SESSION, headers=bearer(made["key"])).status_code
    revoked = guarded.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN_KEY))
    monkeypatch.setattr(known_keys, "REMEMBERED_SECONDS", 0.0)

    after = guarded.get(SESSION, headers=bearer(made["key"]))

    assert (before, revoked.status_code, after.status_code) == (200, 200, 401)
    assert "revoked" in after.json()["detail"]
    assert known_keys.REMEMBERED_SECONDS < 5


def test_a_rotated_key_and_its_successor_are_both_valid(guarded: TestClient) -> None:
    old = make_key(guarded, "read", galleries=["cats-*"], days=3)

    new = guarded.post(f"/v1/keys/{old['id']}/rotate", headers=bearer(ADMIN_KEY)).json()
    again = guarded.post(f"/v1/keys/{old['id']}/rotate", headers=bearer(ADMIN_KEY))

    identities = [guarded.get(SESSION, headers=bearer(made["key"])).json() for made in (old, new)]
    assert [who["galleries"] for who in identities] == [["cats-*"], ["cats-*"]]
    assert identities[0]["key_id"] != identities[1]["key_id"]
    assert again.status_code == 409


def test_a_key_that_expired_is_refused(guarded: TestClient, database: Database) -> None:
    made = make_key(guarded, "read")
    with database.session_scope() as session:
        session.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 second'"))

    answer = guarded.get(SESSION, headers=bearer(made["key"]))

    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]


@pytest.mark.parametrize(
    "address",
    [
        f"/v1/galleries?cursor={ADMIN_KEY}",
        f"/v1/galleries?cursor={ADMIN_KEY.replace('_', '%5F')}",
        f"/v1/galleries/{ADMIN_KEY}",
        f"/v1/galleries/{ADMIN_KEY.replace('u', '%75')}/items",
        f"/livez?{ADMIN_KEY}",
    ],
)
def test_a_key_in_the_address_is_refused_whatever_else_is_shown(guarded: TestClient, address: str) -> None:
    answer = guarded.get(address, headers=bearer(ADMIN_KEY))

    assert answer.status_code == 401
    assert "address" in answer.json()["detail"]
    assert ADMIN_KEY not in answer.text


def test_a_browser_acts_by_its_session_and_no_form_can(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "REMEMBERED_SECONDS", 0.0)
    key = make_key(guarded, "admin")["key"]
    new = {"name": "k", "scopes": ["read"]}

    begun = guarded.post(SESSION, json={"key": key})
    cookie = begun.headers["set-cookie"].lower()
    read = guarded.get("/v1/keys")
    form, script = guarded.post("/v1/keys", json=new), guarded.post("/v1/keys", json=new, headers=FROM_A_SCRIPT)
    stolen = guarded.cookies[COOKIE]
    ended = guarded.delete(SESSION)
    after = guarded.get("/v1/keys", headers={"cookie": f"{COOKIE}={stolen}"})

    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/"))
    assert key not in cookie
    assert (begun.status_code, read.status_code, form.status_code, script.status_code) == (201, 200, 403, 201)
    assert "X-Requested-With" in form.json()["detail"]
    assert (ended.status_code, after.status_code) == (204, 401)


def test_a_session_ends_with_its_key(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "REMEMBERED_SECONDS", 0.0)
    made = make_key(guarded, "read")
    guarded.post(SESSION, json={"key": made["key"]})
    before = guarded.get("/v1/galleries").status_code

    guarded.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN_KEY))

    assert (before, guarded.get("/v1/galleries").status_code) == (200, 401)


def test_no_log_line_has_a_key(guarded: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    made = make_key(guarded, "read")

    guarded.get(SESSION, headers=bearer(made["key"]))
    guarded.post(SESSION, json={"key": made["key"]})
    guarded.get("/v1/galleries", params={"cursor": made["key"]})
    guarded.get("/v1/galleries", headers=bearer(made["key"][:-1]))

    assert made["id"] in caplog.text  # that it was made is said
    assert made["key"][12:-1] not in caplog.text
    assert ADMIN_KEY[12:] not in caplog.text


@pytest.mark.parametrize(
    "to", ["//evil.example", "/\\evil.example", "/\t/evil.example", "/\n\\evil.example", "https://evil.example", "x"]
)
def test_after_a_login_comes_a_page_of_ours(guarded: TestClient, to: str) -> None:
    ours, theirs = (guarded.get("/console/login", params={"to": page}).text for page in ("/console/jobs?of=x", to))

    assert 'data-then="/console/jobs?of=x"' in ours
    assert 'data-then="/"' in theirs
    assert '<form class="action " method="post" data-method="POST"' in ours  # without its script, no key in an address


def test_where_no_key_is_needed_one_that_is_shown_still_counts(client: TestClient) -> None:
    answers = [client.get("/v1/galleries", headers=headers).status_code for headers in ({}, bearer(ADMIN_KEY))]

    assert answers == [200, 401]
