"""Clients of a gallery that ask at a constant rate, in a process of their own.

Query n is due n / rate seconds after the start, whether or not the queries before it were answered, and its latency is
counted from then: a service that stands still is seen by every query that it made wait. A query by a vector names the
model version that the vector is of. When that is refused, the client asks again at once with the other version's vector
and stays with it; the latency has both.
"""

import multiprocessing
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

import httpx

_REFUSALS = frozenset({httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY})
_MAX_REFUSALS = 3  # of one query: two could only meet a cutover and its rollback
_TIMEOUT_SECONDS = 60.0
_K = 10


@dataclass(frozen=True)
class Load:
    """`vectors` are the same probes by model version, (P, D) each, the serving version first; every `image_every`th
    query is by one of the `images`."""

    url: str
    gallery: str
    vectors: Mapping[str, Sequence[Sequence[float]]]
    images: Sequence[bytes]
    image_every: int
    rate: float
    clients: int


@dataclass(frozen=True)
class Reply:
    """What came of one query: `due` in seconds since 1970, answered `seconds` later.

    `asked` is the model version that the answered query named (None: it was an image), `probe` which vector or image it
    was; `version`, `generation`, `ids` and `distances` are the answer's.
    """

    due: float
    seconds: float
    probe: int
    asked: str | None
    refused: int
    failure: str | None = None
    version: str = ""
    generation: int = 0
    ids: tuple[str, ...] = ()
    distances: tuple[float, ...] = ()


class Clients:
    """Asks from its beginning until `stop`."""

    def __init__(self, load: Load) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._stopping = spawn.Event()
        self._replies, self._sent = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=_ask_until_stopped, args=(load, self._stopping, self._sent), daemon=True)

    def __enter__(self) -> "Clients":
        self._process.start()
        self._sent.close()  # or nobody would notice that the process died
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()

    def stop(self) -> list[Reply]:
        """Return all replies, in the order in which they were due, when the last one is there."""
        self._stopping.set()
        replies: list[Reply] = self._replies.recv()
        return sorted(replies, key=lambda reply: reply.due)


def _ask_until_stopped(load: Load, stopping: Event, connection: Connection) -> None:
    replies: list[Reply] = []
    began = time.time()
    threads = [
        threading.Thread(target=_keep_asking, args=(load, number, began, stopping, replies))
        for number in range(load.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.send(replies)


def _keep_asking(load: Load, first: int, began: float, stopping: Event, replies: list[Reply]) -> None:
    """Ask query `first` and every `clients`-th one from there on, each when it is due."""
    with httpx.Client(base_url=load.url, timeout=_TIMEOUT_SECONDS) as http:
        client = Client(load, http)
        for number in count(first, load.clients):
            due = began + number / load.rate
            if stopping.wait(max(0.0, due - time.time())):
                return
            replies.append(client.ask(number, due))


class Client:
    """Knows which version it believes to serve."""

    def __init__(self, load: Load, http: httpx.Client) -> None:
        self._load = load
        self._http = http
        self._versions = list(load.vectors)

    def ask(self, number: int, due: float) -> Reply:
        """Ask query `number`; by the other version's vector where the first one's is refused."""
        by_image = self._load.image_every > 0 and number % self._load.image_every == 0
        probe = number % len(self._load.images if by_image else self._load.vectors[self._versions[0]])
        refused = 0
        while True:
            asked = None if by_image else self._versions[0]
            try:
                answer = self._post(asked, probe)
            except httpx.TransportError as error:
                return Reply(due, time.time() - due, probe, asked, refused, failure=repr(error))
            if asked is None or answer.status_code not in _REFUSALS or refused == _MAX_REFUSALS:
                return _reply(answer, due, probe, asked, refused)
            refused += 1
            self._versions.reverse()

    def _post(self, version: str | None, probe: int) -> httpx.Response:
        path = f"/v1/galleries/{self._load.gallery}/search"
        if version is None:
            return self._http.post(path, params={"k": _K}, content=self._load.images[probe])
        body = {"vectors": [self._load.vectors[version][probe]], "k": _K, "model_version": version}
        return self._http.post(f"{path}/vectors", json=body)


def _reply(answer: httpx.Response, due: float, probe: int, asked: str | None, refused: int) -> Reply:
    seconds = time.time() - due
    if answer.is_error:
        return Reply(due, seconds, probe, asked, refused, failure=f"{answer.status_code} {answer.text[:200]}")
    body = answer.json()
    neighbors = body["neighbors"] if asked is None else body["neighbors"][0]
    return Reply(
        due,
        seconds,
        probe,
        asked,
        refused,
        version=body["model_version"],
        generation=body["generation"],
        ids=tuple(neighbor["id"] for neighbor in neighbors),
        distances=tuple(neighbor["distance"] for neighbor in neighbors),
    )
