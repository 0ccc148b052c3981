"""Queries that arrive together share a run of φ; and the figures that `/metrics` shows of them.

There is no thread here. One of the threads that wait for φ leads: it takes what is queued, runs φ, hands out the
results, and lets the first of those that came meanwhile lead. So a batch begins at once when φ is idle, and grows with
the load by itself. Nothing has to be stopped: a batcher that nobody calls any more is garbage.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.errors import Unavailable
from service.metrics import SECONDS

Vectors = NDArray[np.float32]
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ImageQueryMetrics:
    """What one process counts of image queries, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.batch_images = Histogram(
            "gallery_query_batch_images",
            "Images of queries in one run of the encoder",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        wait_seconds = Histogram(
            "gallery_query_wait_seconds",
            "How long an image query waited: for its turn, then for its batch to begin",
            ["waited_for"],
            buckets=SECONDS,
            registry=self.registry,
        )
        stage_seconds = Histogram(
            "gallery_search_stage_seconds",
            "What stages of searches take: decoding the image, encoding it with the wait for its batch, searching the"
            " index, reading the rows of what was found; the last two once for vectors that were asked together",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.decode_seconds = stage_seconds.labels("decode")
        self.encode_seconds = stage_seconds.labels("encode")
        self.index_seconds = stage_seconds.labels("index")
        self.rows_seconds = stage_seconds.labels("rows")
        self.turn_wait_seconds = wait_seconds.labels("turn")
        self.batch_wait_seconds = wait_seconds.labels("batch")
        self.admitted = Gauge("gallery_queries_admitted", "Image queries that run or wait", registry=self.registry)
        self.refused = Counter(
            "gallery_queries_refused", "Image queries refused because too many waited", registry=self.registry
        )
        self.canary = Counter(
            "gallery_canary_queries",
            "Image queries drawn for an upgrade's canary, by the generation that answered: the candidate, or the active"
            " one where the candidate could not",
            ["upgrade", "answered_by"],
            registry=self.registry,
        )


class NotTried(Unavailable):
    """φ failed on a batch, and trying its queries one by one took too long to come to this one."""


@dataclass(eq=False)
class _Query:
    """Inputs (b, 3, H, W) of one caller; `woken` when they are answered, or when its thread is to lead."""

    inputs: Vectors
    queued_at: float
    woken: threading.Event = field(default_factory=threading.Event)
    outcome: Vectors | BaseException | None = None


class MicroBatcher:
    """Runs φ for many threads, at most one batch at a time.

    `batch_images` is the most that a batch takes; with 1, every caller runs φ by itself and at the same time as others.
    A batch that is not full waits up to `wait_seconds` for callers that are preparing their inputs just then, and for
    nobody else. When φ fails on a batch, its queries are tried alone, for `alone_seconds` in all: queries that φ is
    stopped on by its time limit cost the others that once, and not once each. Invariants: the thread that leads has the
    first query of the queue; while none leads, it is empty.
    """

    def __init__(
        self,
        run: Callable[[Vectors], Vectors],
        batch_images: int,
        wait_seconds: float,
        metrics: ImageQueryMetrics,
        alone_seconds: float = 60.0,
    ) -> None:
        self._run = run
        self._batch_images = batch_images
        self._wait_seconds = wait_seconds
        self._alone_seconds = alone_seconds
        self._metrics = metrics
        self._queue: deque[_Query] = deque()
        self._is_led = False
        self._preparing = 0
        self._changed = threading.Condition()

    def __call__(self, prepare: Callable[[], Vectors]) -> Vectors:
        """Return φ (b, D) of the inputs (b, 3, H, W) that `prepare` makes in the caller's own thread.

        What φ raises on these inputs is raised here, and to no other caller.
        """
        if self._batch_images == 1:
            with self._metrics.decode_seconds.time():
                inputs = prepare()
            self._metrics.batch_images.observe(len(inputs))
            with self._metrics.encode_seconds.time():
                return self._run(inputs)
        with self._coming():
            with self._metrics.decode_seconds.time():
                inputs = prepare()
            query = _Query(inputs, time.monotonic())
            leads = self._enqueue(query)
        with self._metrics.encode_seconds.time():
            return self._outcome(query, leads)

    def _outcome(self, query: _Query, leads: bool) -> Vectors:
        """Wait for a query's turn or its answer; return φ of it, or raise what φ did."""
        if not leads:
            query.woken.wait()
        if query.outcome is None:
            self._lead()
        if isinstance(query.outcome, BaseException):
            raise query.outcome
        assert query.outcome is not None  # who leads answers its own query first
        return query.outcome

    @contextmanager
    def _coming(self) -> Iterator[None]:
        """Let a batch that is about to begin know that another query is on its way."""
        with self._changed:
            self._preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify()

    def _enqueue(self, query: _Query) -> bool:
        """Queue a query, and return whether its thread leads."""
        with self._changed:
            self._queue.append(query)
            leads, self._is_led = not self._is_led, True
            return leads

    def _lead(self) -> None:
        """Answer a batch and wake the next leader, then those who were answered."""
        batch = self._take()
        try:
            self._answer(batch)
        finally:
            with self._changed:
                self._is_led = bool(self._queue)
                if self._queue:
                    self._queue[0].woken.set()
            for query in batch:
                query.woken.set()

    def _take(self) -> list[_Query]:
        """Return the first queries of the queue, the leader's among them: a batch at most, or one larger query."""
        with self._changed:
            self._changed.wait_for(lambda: not self._preparing or self._is_full(), self._wait_seconds)
            batch = [self._queue.popleft()]
            images = len(batch[0].inputs)
            while self._queue and images + len(self._queue[0].inputs) <= self._batch_images:
                batch.append(self._queue.popleft())
                images += len(batch[-1].inputs)
        began = time.monotonic()
        self._metrics.batch_images.observe(images)
        for query in batch:
            self._metrics.batch_wait_seconds.observe(began - query.queued_at)
        return batch

    def _is_full(self) -> bool:
        return sum(len(query.inputs) for query in self._queue) >= self._batch_images

    def _answer(self, batch: Sequence[_Query]) -> None:
        """Give each query its rows of one run; when the run fails, run each query alone, so that one fails alone."""
        try:
            outputs = self._run(np.concatenate([query.inputs for query in batch]))
            ends = np.cumsum([len(query.inputs) for query in batch])
            for query, rows in zip(batch, np.split(outputs, ends[:-1]), strict=True):
                query.outcome = rows
        except BaseException as error:  # noqa: BLE001 - raised by the thread whose query failed
            if len(batch) == 1:
                batch[0].outcome = error
                return
            ends_at = time.monotonic() + self._alone_seconds
            for query in batch:
                if time.monotonic() < ends_at:
                    self._answer([query])
                else:
                    query.outcome = NotTried("The model failed on images that came together, and has yet to try this.")
