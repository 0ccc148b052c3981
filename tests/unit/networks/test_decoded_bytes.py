"""The budget of decoded bytes: never more than there are, in order, and a refusal after a while."""

import threading
import time

import pytest

from service.networks.decoded_bytes import DecodedBytes, ImagesTooBusy


def test_no_more_is_held_at_a_time_than_there_is() -> None:
    budget = DecodedBytes(100, wait_seconds=30)
    held, most, lock = 0, 0, threading.Lock()

    def decode(count: int) -> None:
        nonlocal held, most
        for _ in range(50):
            with budget.hold(count):
                with lock:
                    held += count
                    most = max(most, held)
                with lock:
                    held -= count

    threads = [threading.Thread(target=decode, args=(count,)) for count in (10, 40, 60, 100, 30, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 0 < most <= 100
    assert held == 0


def test_who_waits_too_long_is_told_to_come_back() -> None:
    budget = DecodedBytes(100, wait_seconds=0.01)

    with budget.hold(60), pytest.raises(ImagesTooBusy, match="try again later") as refused, budget.hold(41):
        pass

    assert (refused.value.status_code, refused.value.retry_after_seconds) == (429, 5)
    with budget.hold(100):
        pass


def test_a_large_image_is_not_passed_by_small_ones_that_came_later() -> None:
    budget = DecodedBytes(100, wait_seconds=30)
    order: list[str] = []

    def hold(name: str, count: int) -> None:
        with budget.hold(count):
            order.append(name)

    large, small = (threading.Thread(target=hold, args=arguments) for arguments in (("large", 90), ("small", 10)))
    with budget.hold(50):
        large.start()
        while not budget.waiting:
            time.sleep(0.001)
        small.start()
        while budget.waiting < 2:
            time.sleep(0.001)
    large.join()
    small.join()

    assert order == ["large", "small"]


def test_what_an_error_interrupts_is_given_back() -> None:
    budget = DecodedBytes(100, wait_seconds=0)

    with pytest.raises(KeyError), budget.hold(100):
        raise KeyError

    with budget.hold(100):
        pass
