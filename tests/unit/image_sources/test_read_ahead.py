"""Reading ahead: in order for who takes, several at once, never more than asked for."""

import threading
import time
from contextlib import closing

import pytest

from service.image_sources.errors import ImageNotRead
from service.image_sources.read_ahead import ReadAhead


class CountingReader:
    """Gives a URI's own bytes, after a while, and counts how many are read at once and in all."""

    def __init__(self) -> None:
        self.read_uris: list[str] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def read(self, uri: str) -> bytes:
        with self._lock:
            self.read_uris.append(uri)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        if uri == "broken":
            raise ImageNotRead("It is broken.")
        return uri.encode()


def test_images_come_in_order_and_are_read_some_at_a_time() -> None:
    reader, uris = CountingReader(), [str(number) for number in range(10)]

    with closing(ReadAhead(reader, uris, at_once=3)) as images:
        taken = [images.take(position) for position in range(10)]

    assert taken == [uri.encode() for uri in uris]
    assert reader.most_at_once == 3
    assert sorted(reader.read_uris) == uris


def test_who_takes_nothing_more_has_at_most_a_few_read_in_vain() -> None:
    reader = CountingReader()

    with closing(ReadAhead(reader, ["a"] * 100, at_once=4)) as images:
        images.take(0)

    time.sleep(0.1)
    assert len(reader.read_uris) <= 4


def test_an_error_is_its_own_images_and_an_image_may_be_taken_again() -> None:
    with closing(ReadAhead(CountingReader(), ["a", "broken", "c"], at_once=2)) as images:
        assert images.take(0) == b"a"
        with pytest.raises(ImageNotRead, match="broken"):
            images.take(1)
        assert [images.take(2), images.take(0)] == [b"c", b"a"]
