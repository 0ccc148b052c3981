"""Callers that come together share a run, get their own rows, and never wait for one that does not come."""

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from service.networks.micro_batching import ImageQueryMetrics, MicroBatcher, NotTried

Vectors = NDArray[np.float32]
FOR_EVER = 3600.0
PATIENCE = 30.0


class Network:
    """Doubles its inputs, and notes the size of each batch; waits while it is held, fails on inputs below zero."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.batches: list[int] = []
        self.entered = threading.Event()
        self.free = threading.Event()
        self.free.set()
        self._error = error

    def __call__(self, inputs: Vectors) -> Vectors:
        self.batches.append(len(inputs))
        self.entered.set()
        assert self.free.wait(PATIENCE)
        if self._error is not None and (inputs < 0).any():
            raise self._error
        return 2 * inputs


def batcher_of(
    run: Callable[[Vectors], Vectors], batch_images: int = 32, wait_seconds: float = FOR_EVER
) -> MicroBatcher:
    return MicroBatcher(run, batch_images, wait_seconds, ImageQueryMetrics())


def inputs_of(value: float, count: int = 1) -> Vectors:
    return np.full((count, 2), value, np.float32)


def call_together(batcher: MicroBatcher, values: Sequence[float], threads: ThreadPoolExecutor) -> list[Future[Vectors]]:
    """Call with one input per value; nobody has prepared its own before everybody is there."""
    everybody = threading.Barrier(len(values))

    def call(value: float) -> Vectors:
        def prepare() -> Vectors:
            everybody.wait(PATIENCE)
            return inputs_of(value)

        return batcher(prepare)

    return [threads.submit(call, value) for value in values]


def test_a_lone_caller_waits_for_nobody() -> None:
    network = Network()
    batcher = batcher_of(network)

    outputs = [batcher(partial(inputs_of, number)) for number in range(3)]

    assert [output.tolist() for output in outputs] == [[[0, 0]], [[2, 2]], [[4, 4]]]
    assert network.batches == [1, 1, 1]


def test_callers_that_come_together_share_a_run_and_get_their_own_rows() -> None:
    network = Network()

    with ThreadPoolExecutor() as threads:
        calls = call_together(batcher_of(network), range(4), threads)
        outputs = [call.result(PATIENCE).tolist() for call in calls]

    assert outputs == [[[2 * number] * 2] for number in range(4)]
    assert network.batches == [4]


def test_callers_that_come_while_the_network_runs_share_the_next_run() -> None:
    network = Network()
    batcher = batcher_of(network)
    network.free.clear()

    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(batcher, lambda: inputs_of(7))
        network.entered.wait(PATIENCE)
        calls = call_together(batcher, range(5), threads)
        network.free.set()
        outputs = [call.result(PATIENCE).tolist() for call in calls]

    assert first.result().tolist() == [[14, 14]]
    assert outputs == [[[2 * number] * 2] for number in range(5)]
    assert network.batches == [1, 5]


def test_a_batch_has_at_most_as_many_images_as_it_may() -> None:
    network = Network()

    with ThreadPoolExecutor(7) as threads:
        calls = call_together(batcher_of(network, batch_images=3), range(7), threads)
        outputs = [call.result(PATIENCE).tolist() for call in calls]

    assert outputs == [[[2 * number] * 2] for number in range(7)]
    assert (max(network.batches), sum(network.batches)) == (3, 7)


def test_a_caller_with_more_images_than_a_batch_has_its_own_run() -> None:
    network = Network()

    output = batcher_of(network, batch_images=3)(lambda: inputs_of(1, 8))

    assert output.shape == (8, 2)
    assert network.batches == [8]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_an_input_that_breaks_the_network_fails_its_own_caller_alone(error: BaseException) -> None:
    network = Network(error)

    with ThreadPoolExecutor(4) as threads:
        calls = call_together(batcher_of(network), [1, -1, 2, 3], threads)
        failed = calls[1].exception(PATIENCE)
        outputs = [calls[number].result(PATIENCE).tolist() for number in (0, 2, 3)]

    assert failed is error
    assert outputs == [[[2, 2]], [[4, 4]], [[6, 6]]]


def test_queries_that_stop_the_network_cost_the_others_of_their_batch_a_time_limit_and_not_one_each() -> None:
    class Stopped(Exception):
        pass

    network = Network(Stopped())
    batcher = MicroBatcher(network, 32, FOR_EVER, ImageQueryMetrics(), alone_seconds=0.0)

    with ThreadPoolExecutor(4) as threads:
        calls = call_together(batcher, [-1, -1, -1, 1], threads)
        errors = [call.exception(PATIENCE) for call in calls]
        again = threads.submit(batcher, lambda: inputs_of(1)).result(PATIENCE)

    assert {type(error) for error in errors} == {NotTried}
    assert network.batches[0] == 4
    assert network.batches[1:] == [1]
    assert again.tolist() == [[2, 2]]


def test_a_caller_that_cannot_prepare_is_not_waited_for() -> None:
    batcher = batcher_of(Network())
    everybody = threading.Barrier(2)

    def refuse() -> Vectors:
        everybody.wait(PATIENCE)
        raise ValueError("no image")

    def prepare() -> Vectors:
        everybody.wait(PATIENCE)
        return inputs_of(1)

    with ThreadPoolExecutor(2) as threads:
        refused, answered = threads.submit(batcher, refuse), threads.submit(batcher, prepare)

        assert isinstance(refused.exception(PATIENCE), ValueError)
        assert answered.result(PATIENCE).tolist() == [[2, 2]]


def test_with_batches_of_one_callers_run_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def run(inputs: Vectors) -> Vectors:
        both.wait(PATIENCE)
        return 2 * inputs

    batcher = batcher_of(run, batch_images=1)
    with ThreadPoolExecutor(2) as threads:
        outputs = [threads.submit(batcher, lambda: inputs_of(1)).result for _ in range(2)]

        assert [output(PATIENCE).tolist() for output in outputs] == [[[2, 2]], [[2, 2]]]


def test_a_batcher_that_is_let_go_answers_who_waits_and_goes() -> None:
    network = Network()
    batcher = batcher_of(network)
    network.free.clear()
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(batcher, lambda: inputs_of(7))
        network.entered.wait(PATIENCE)
        calls = [first, *call_together(batcher, range(4), threads)]
        gone = weakref.ref(batcher)
        del batcher

        network.free.set()

        assert [call.result(PATIENCE)[0, 0] for call in calls] == [14, 0, 2, 4, 6]
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("wait_seconds", [0.0, 0.0005])
def test_many_callers_with_any_number_of_images_get_their_own_rows(wait_seconds: float) -> None:
    network = Network()
    batcher = batcher_of(network, batch_images=6, wait_seconds=wait_seconds)

    def call_often(caller: int) -> int:
        right = 0
        for number in range(100):
            value, count = 1000 * caller + number, 1 + (caller + number) % 4
            right += np.array_equal(batcher(partial(inputs_of, value, count)), inputs_of(2 * value, count))
        return right

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(call_often, range(8))) == [100] * 8
    assert max(network.batches) <= 6
