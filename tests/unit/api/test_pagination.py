"""Cursors: a round trip, pages that join without a gap, and that a forged one is refused or harmless."""

import base64

import pytest

from service.api.pagination import InvalidCursor, decode_cursor, encode_cursor, page_of


@pytest.mark.parametrize("last_id", [0, 1, 9, 10, 123_456_789, 2**63 - 1])
def test_a_cursor_brings_back_its_id(last_id: int) -> None:
    cursor = encode_cursor(last_id)

    assert decode_cursor(cursor) == last_id
    assert len(cursor) <= 64  # what a request may carry
    assert cursor.isascii()
    assert not set(cursor) & set("=+/&?# ")  # needs no escaping in a URL


@pytest.mark.parametrize("cursor", [None, ""])
def test_no_cursor_is_the_first_page(cursor: str | None) -> None:
    assert decode_cursor(cursor) == 0


def forged(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    ["x", "abcde", "!!!!", "ümläut", "\0", "猫猫", "=", "====", forged(b"-1"), forged(str(2**63).encode())]
    + [forged(content) for content in (b"one", b"1.5", b"1e3", b"0x10", b"1; DROP", b"\xff\xfe", "٣".encode())],
)
def test_a_forged_cursor_is_422(cursor: str) -> None:
    with pytest.raises(InvalidCursor) as refusal:
        decode_cursor(cursor)

    assert refusal.value.status_code == 422


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
