"""Cursors: a round trip, pages that join without a gap, and that a forged one is refused or harmless."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.api.pagination import Cursor, decode_cursor, encode_cursor, page_of


@pytest.mark.parametrize("last_id", [0, 1, 9, 10, 123_456_789, 2**63 - 1])
def test_a_cursor_brings_back_its_id(last_id: int) -> None:
    cursor = encode_cursor(last_id)

    assert decode_cursor(cursor) == last_id
    assert len(cursor) <= 64  # what a request may carry
    assert cursor.isascii()
    assert not set(cursor) & set("=+/&?# ")  # needs no escaping in a URL


def test_no_cursor_is_the_first_page() -> None:
    assert decode_cursor(None) == 0


FORGED = ["", "x", "1", "!!!!", "ümläut", "\0", "=", "-00000000000001", "8" + 15 * "0", 17 * "0", "0x" + 14 * "0"]


@pytest.mark.parametrize("cursor", FORGED)
def test_a_forged_cursor_is_422(cursor: str) -> None:
    app = FastAPI()
    app.get("/")(read_page)

    answer = TestClient(app).get("/", params={"cursor": cursor})

    assert answer.status_code == 422


def read_page(cursor: Cursor = None) -> int:
    return decode_cursor(cursor)


@pytest.mark.parametrize(("count", "limit"), [(0, 1), (1, 1), (2, 1), (7, 3), (9, 3), (10, 3), (5, 1000)])
def test_pages_join_to_the_whole_list(count: int, limit: int) -> None:
    ids = [3 * number + 1 for number in range(count)]
    rows: list[str] = []
    cursor: str | None = None

    for _ in range(count // limit + 1):
        found = [id_ for id_ in ids if id_ > decode_cursor(cursor)][: limit + 1]
        page = page_of([f"row {id_}" for id_ in found], found, limit)
        rows += page.items
        cursor = page.next_cursor
        assert len(page.items) <= limit
        if cursor is None:
            break

    assert cursor is None
    assert rows == [f"row {id_}" for id_ in ids]
