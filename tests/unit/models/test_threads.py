"""Small runs of an encoder stay in the thread that asks, long ones are shared by all; who wants no team has none."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from models.artifacts import Vectors
from models.threads import in_one_thread, sharing_long_runs

THREADS = 3


@pytest.fixture(autouse=True)
def _team_of_three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


class Recording:
    """An encoder whose every image takes `seconds`; it notes how many threads a network would have had."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.threads: list[int] = []

    def __call__(self, images: Vectors) -> Vectors:
        time.sleep(self._seconds * len(images))
        self.threads.append(torch.get_num_threads())
        return images[:, :, 0, 0]


def images(count: int) -> Vectors:
    return np.arange(count * 3 * 4 * 4, dtype=np.float32).reshape(count, 3, 4, 4)


@pytest.mark.parametrize(("seconds", "count", "threads"), [(0.0005, 1, 1), (0.0005, 64, THREADS), (0.02, 1, THREADS)])
def test_a_run_is_shared_when_it_takes_long(seconds: float, count: int, threads: int) -> None:
    recording = Recording(seconds)
    encoder = sharing_long_runs(recording, (3, 4, 4))
    recording.threads.clear()

    encoder(images(count))

    assert recording.threads == [threads]


def test_what_a_network_gives_is_passed_on() -> None:
    encoder = sharing_long_runs(lambda asked: asked[:, :, 0, 0], (3, 4, 4))

    for count in (1, 200):
        np.testing.assert_array_equal(encoder(images(count)), images(count)[:, :, 0, 0])


def test_neither_this_thread_nor_others_keep_a_setting() -> None:
    def failing(asked: Vectors) -> Vectors:
        if len(asked) == 2:
            raise RuntimeError
        return asked[:, :, 0, 0]

    encoder = sharing_long_runs(failing, (3, 4, 4))
    encoder(images(1))
    with pytest.raises(RuntimeError):
        encoder(images(2))

    assert torch.get_num_threads() == THREADS
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == THREADS


def test_a_thread_that_wants_no_team_has_none_and_others_keep_theirs() -> None:
    def threads_of_two_runs() -> list[int]:
        with in_one_thread():
            found = []
            for _ in range(2):
                torch.randn(2, 2).sum()
                found.append(torch.get_num_threads())
            return found

    with ThreadPoolExecutor(1) as other:
        assert other.submit(threads_of_two_runs).result() == [1, 1]
        assert other.submit(torch.get_num_threads).result() == THREADS
    assert torch.get_num_threads() == THREADS
