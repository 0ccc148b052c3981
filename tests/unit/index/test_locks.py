"""The reader-writer lock, alone and around an index that is searched while it is added to."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from service.index.faiss_index import FaissIndex
from service.index.locks import ReadWriteLock
from service.index.protocol import IndexKind
from tests.unit.index.building import KINDS, built

WAIT_SECONDS = 10.0


class Threads:
    """Threads whose failures are raised where they are joined."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, body: Callable[[], None]) -> None:
        def run() -> None:
            try:
                body()
            except BaseException as error:  # noqa: BLE001 - raised again in join()
                self.failures.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "a thread is stuck"
        if self.failures:
            raise self.failures[0]


def test_readers_share_the_lock() -> None:
    lock, threads, both_inside = ReadWriteLock(), Threads(), threading.Barrier(2, timeout=WAIT_SECONDS)

    def read() -> None:
        with lock.reading():
            both_inside.wait()

    threads.start(read)
    threads.start(read)

    threads.join()
    assert not both_inside.broken


def test_a_waiting_writer_goes_before_a_new_reader() -> None:
    lock, threads, order = ReadWriteLock(), Threads(), list[str]()

    def write() -> None:
        with lock.writing():
            order.append("writer")

    def read() -> None:
        with lock.reading():
            order.append("reader")

    with lock.reading():
        threads.start(write)
        time.sleep(0.1)  # until it waits; were it later, the order would still be the asserted one or a failure
        threads.start(read)
        time.sleep(0.1)
        inside_while_first_reads = list(order)

    threads.join()
    assert inside_while_first_reads == []
    assert order == ["writer", "reader"]


@pytest.mark.parametrize("mode", ["reading", "writing"])
def test_a_failure_inside_gives_the_lock_back(mode: str) -> None:
    lock, threads, entered = ReadWriteLock(), Threads(), threading.Event()

    with pytest.raises(ZeroDivisionError), lock.reading() if mode == "reading" else lock.writing():
        raise ZeroDivisionError

    def write() -> None:
        with lock.writing():
            entered.set()

    threads.start(write)
    threads.join()
    assert entered.is_set()


def test_writers_exclude_everyone() -> None:
    lock, threads = ReadWriteLock(), Threads()
    pair = [0, 0]

    def write() -> None:
        for _ in range(100):
            with lock.writing():
                pair[0] += 1
                time.sleep(0)
                pair[1] += 1

    def read() -> None:
        for _ in range(100):
            with lock.reading():
                first = pair[0]
                time.sleep(0)
                assert first == pair[1]

    for body in (write, write, read, read):
        threads.start(body)

    threads.join()
    assert pair == [200, 200]


@pytest.mark.parametrize("kind", KINDS)
def test_searches_beside_additions_and_removals_stay_right(kind: IndexKind) -> None:
    """Each row is (id, 0, ...): its own nearest, at every moment between its addition and its removal."""
    dim, sealed_count = 8, 4_000
    ids = np.arange(sealed_count, dtype=np.int64)
    sealed = built("l2", ids, _vectors(ids, dim), kind)
    index, threads, stopping = FaissIndex("l2", dim, sealed), Threads(), threading.Event()
    searches = [0, 0]
    ever = ids[::2]  # the writer leaves the even ones alone

    def search(which: int) -> None:
        random = np.random.default_rng(which)
        while not stopping.is_set():
            asked = random.choice(ever, 3)
            found = index.search(_vectors(asked, dim), 1, ids if searches[which] % 3 == 0 else None)
            assert found.ids[:, 0].tolist() == asked.tolist()
            searches[which] += 1

    def write() -> None:
        added = sealed_count
        while not stopping.is_set():
            new = np.arange(added, added + 20, dtype=np.int64)
            index.add(new, _vectors(new, dim))
            index.remove(np.concatenate([new[:10], ids[1::2][added % 100 :: 100]]))
            added += 20
            time.sleep(0.001)

    for body in (lambda: search(0), lambda: search(1), write):
        threads.start(body)
    time.sleep(1.0)
    stopping.set()

    threads.join()
    assert min(searches) > 10
    assert index.tail_size > 10
    assert len(index) < sealed_count + index.tail_size


def _vectors(
    ids: np.ndarray[tuple[int], np.dtype[np.int64]], dim: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    vectors = np.zeros((len(ids), dim), np.float32)
    vectors[:, 0] = ids % 64  # float16 codes hold these whole numbers exactly
    vectors[:, 1] = ids // 64
    return vectors
