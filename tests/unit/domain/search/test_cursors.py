"""What a cursor says, and that nothing else is taken for one."""

import base64

import pytest

from service.domain.search.cursors import MAX_PAGED, MAX_TEXT, Cursor, InvalidCursor, TooDeep, digest_of_query

DIGEST = digest_of_query(1, ["item", "a"], {"label": "cat"})
CURSOR = Cursor(7, 2**40, 1000, -0.1, 2**62, DIGEST)


def test_a_cursor_is_read_as_it_was_written() -> None:
    text = str(CURSOR)

    assert Cursor.of(text, DIGEST) == CURSOR
    assert len(text) <= MAX_TEXT
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_a_cursor_that_was_changed_anywhere_is_refused() -> None:
    data = base64.urlsafe_b64decode(str(CURSOR))

    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(InvalidCursor, match="not one that this service gave"):
            Cursor.of(base64.urlsafe_b64encode(changed).decode(), DIGEST)


@pytest.mark.parametrize("text", ["", "*", "x", "ü", "\0", "*" * 80, "A" * 80, str(CURSOR)[:-4], str(CURSOR) * 2, "="])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor, match="not one that this service gave"):
        Cursor.of(text, DIGEST)


def test_a_cursor_of_another_query_is_refused() -> None:
    others = [
        digest_of_query(2, ["item", "a"], {"label": "cat"}),
        digest_of_query(1, ["item", "b"], {"label": "cat"}),
        digest_of_query(1, ["item", "a"], {"label": "dog"}),
        digest_of_query(1, ["item", "a"], None),
    ]

    for other in others:
        with pytest.raises(InvalidCursor, match="of another query"):
            Cursor.of(str(CURSOR), other)


def test_the_order_of_a_filters_keys_makes_no_other_query() -> None:
    assert digest_of_query({"a": 1, "b": [2, {"c": 3, "d": 4}]}) == digest_of_query(
        {"b": [2, {"d": 4, "c": 3}], "a": 1}
    )


def test_a_cursor_past_the_last_page_is_refused() -> None:
    last = Cursor(7, 8, MAX_PAGED - 1, 1.0, 9, DIGEST)

    assert Cursor.of(str(last), DIGEST) == last
    with pytest.raises(TooDeep, match="10,000th neighbour"):
        Cursor.of(str(Cursor(7, 8, MAX_PAGED, 1.0, 9, DIGEST)), DIGEST)
