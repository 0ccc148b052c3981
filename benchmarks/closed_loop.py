"""Clients that ask as fast as they are answered, in a process of their own: they share no interpreter with the server.

Standard library only, so that a client costs little beside the server on the same cores.
"""

import http.client
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Load:
    """So many clients, each with a connection of its own and one request at a time; the first seconds do not count."""

    port: int
    path: str
    clients: int
    warm_seconds: float
    seconds: float
    content_type: str = "image/png"


@dataclass
class Answered:
    """Milliseconds of each answer that counts, and how many of them had another status than 200."""

    milliseconds: list[float] = field(default_factory=list)
    failures: int = 0


@contextmanager
def load_process(bodies: Sequence[bytes]) -> Iterator[ProcessPoolExecutor]:
    """A process to submit `ask(load)` to."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_keep, initargs=(bodies,)) as process:
        yield process


def ask(load: Load) -> Answered:
    """POST bodies, each client's in turn, until the time is over."""
    answered = Answered()
    begins = time.perf_counter() + load.warm_seconds
    clients = [
        threading.Thread(target=_client, args=(load, number, begins, answered)) for number in range(load.clients)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return answered


_bodies: Sequence[bytes] = ()


def _keep(bodies: Sequence[bytes]) -> None:
    global _bodies
    _bodies = bodies


def _client(load: Load, number: int, begins: float, answered: Answered) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", load.port, timeout=120)
    came = time.perf_counter()
    while came < begins + load.seconds:
        connection.request("POST", load.path, _bodies[number % len(_bodies)], {"Content-Type": load.content_type})
        answer = connection.getresponse()
        answer.read()
        left = time.perf_counter()
        if begins <= left < begins + load.seconds:
            answered.milliseconds.append((left - came) * 1000)
            answered.failures += answer.status != http.client.OK
        number += load.clients
        came = time.perf_counter()
    connection.close()
