"""Who writes during the storm, and what was acknowledged to them."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from tests.chaos.storm.oracle import Oracle, Record, Value, Violations
from tests.chaos.storm.values import Kind, Reference, Write, imported, picture, previous_of

GALLERY = "/v1/galleries/g"
_HANGS_AFTER_SECONDS = 120.0
_IMAGES_PER_POST = 6
_DELETES_PER_TURN = 4
_TOKENS_PER_WRITER = 10**8
_Write = tuple[str, Value]


@dataclass
class Traffic:
    """What writers, searchers and the plan share. `space` is what imports give; images are kept in `pictures`, which
    the service may read."""

    urls: Sequence[str]
    oracle: Oracle
    violations: Violations
    reference: Reference
    seed: int
    chunk_items: int
    writer_pause_seconds: float
    pictures: Path
    space: Kind = "v1"
    versions: dict[int, str] = field(default_factory=dict)  # of generations, as first heard
    stopping: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def learn_generation(self, generation: int, version: str) -> None:
        known = self.versions.setdefault(generation, version)
        if known != version:
            self.violations.add(f"generation {generation} was said to be under {known} and under {version}")


class Client:
    """One thread's connections to every API process; each request goes to one of them by chance."""

    def __init__(self, traffic: Traffic, chance: random.Random) -> None:
        self._traffic = traffic
        self._chance = chance
        self._client = httpx.Client(timeout=_HANGS_AFTER_SECONDS)
        self.never_sent = False

    def send(self, method: str, path: str, **arguments: Any) -> httpx.Response | None:
        """Return the answer, or None when the connection broke; `never_sent` then says that nothing was asked."""
        url = self._chance.choice(self._traffic.urls) + path
        self.never_sent = False
        try:
            return self._client.request(method, url, **arguments)
        except httpx.ConnectError:
            self.never_sent = True
        except httpx.TimeoutException:
            self._traffic.violations.add(f"{method} {path} was not answered in {_HANGS_AFTER_SECONDS:.0f} s")
        except httpx.TransportError:
            pass  # the connection broke on the way: whether it was done is left open
        time.sleep(0.05)
        return None


class Writer:
    """Imports, replaces, posts images and deletes, all of items of its own."""

    def __init__(self, traffic: Traffic, number: int, client: Client, chance: random.Random) -> None:
        self._traffic = traffic
        self._number = number
        self._client = client
        self._chance = chance
        prefix = f"{number}-"
        self._ids = [id_ for id_ in traffic.oracle.records if id_.startswith(prefix)]
        # Tokens go on where the base ended: one that is used twice could stand for two writes of an item, and a refused
        # one of them be taken for the other.
        used = (write.token for id_ in self._ids for write in traffic.oracle.records[id_].ever)
        self._token = max(used, default=(number + 1) * _TOKENS_PER_WRITER)

    def run(self) -> None:
        turns: tuple[Callable[[], None], ...] = (self.import_vectors, self.post_images, self.delete_items)
        while not self._traffic.stopping.is_set():
            self._chance.choices(turns, (3, 2, 2))[0]()
            self._traffic.stopping.wait(self._traffic.writer_pause_seconds * self._chance.uniform(0.5, 1.5))

    def import_new(self, count: int) -> bool:
        """Import new items, and return whether that was acknowledged."""
        return self._import(self._new_ids(count))

    def import_vectors(self) -> None:
        half = self._traffic.chunk_items // 2
        self._import([*self._some_ids(half), *self._new_ids(half)])

    def post_images(self) -> None:
        half = _IMAGES_PER_POST // 2
        ids = [*self._some_ids(half), *self._new_ids(half)]
        writes = [(id_, self._next_write("image")) for id_ in ids]
        before = [(self._record(id_).is_live, self._record(id_).is_absent) for id_ in ids]
        files = [("files", (id_, picture(write.token), "image/png")) for id_, write in writes]
        items = [
            {"id": id_, "metadata": {"token": write.token}, "image_uri": self._keep_picture(write.token)}
            for id_, write in writes
        ]
        answer = self._write(writes, "POST", f"{GALLERY}/images", files=files, data={"items": json.dumps(items)})
        if answer is None:
            return
        self._traffic.count("images", len(writes))
        for (id_, _), (was_live, was_absent), result in zip(writes, before, answer.json()["results"], strict=True):
            if result["status"] not in ("created", "replaced"):
                self._traffic.violations.add(f"image of {id_} was {result}")
            if result["status"] == "created" and was_live:
                self._traffic.violations.add(f"{id_} was lost: an image of it was 'created'")
            if result["status"] == "replaced" and was_absent:
                self._traffic.violations.add(f"{id_} was resurrected: an image of it 'replaced' it")

    def delete_items(self) -> None:
        for id_ in self._some_ids(_DELETES_PER_TURN):
            was_live, was_absent = self._record(id_).is_live, self._record(id_).is_absent
            answer = self._write([(id_, None)], "DELETE", f"{GALLERY}/items/{id_}", also_done=404)
            if answer is None:
                continue
            if answer.status_code == 404 and was_live:
                self._traffic.violations.add(f"{id_} was lost: deleting it was a 404")
            if answer.status_code == 204 and was_absent:
                self._traffic.violations.add(f"{id_} was resurrected: it could be deleted again")

    def _import(self, ids: Sequence[str]) -> bool:
        space = self._traffic.space
        writes = [(id_, self._next_write(space)) for id_ in ids]
        tokens = [write.token for _, write in writes]
        embedding, side_information = imported(tokens)
        columns = {
            "id": list(ids),
            "embedding": list(embedding),
            "side_information": list(side_information),
            "metadata": [json.dumps({"token": token}) for token in tokens],
        }
        if space == "both":
            embedding, side_information = imported(previous_of(tokens))
            columns |= {"previous_embedding": list(embedding), "previous_side_information": list(side_information)}
        table = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        body = sink.getvalue().to_pybytes()
        path, parameters = f"{GALLERY}/embeddings", {"model_version": "v1" if space == "v1" else "v2"}
        answer = self._write(writes, "POST", path, content=body, params=parameters, refused=409)
        return answer is not None

    def _write(
        self, writes: Sequence[_Write], method: str, path: str, also_done: int = 0, refused: int = 0, **arguments: Any
    ) -> httpx.Response | None:
        """Send one write and keep the oracle; return the answer if the write was acknowledged."""
        traffic = self._traffic
        traffic.oracle.begin(writes)
        answer = self._client.send(method, path, **arguments)
        if answer is None and self._client.never_sent:
            traffic.oracle.refuse(writes)
        elif answer is None or answer.status_code >= 500:
            traffic.count("writes left open", len(writes))
        elif answer.is_success or answer.status_code == also_done:
            traffic.oracle.acknowledge(writes)
            traffic.count("writes", len(writes) if answer.is_success else 0)
            return answer
        else:
            traffic.oracle.refuse(writes)
            traffic.count("writes refused", len(writes))
            if answer.status_code != refused:
                traffic.violations.add(f"{method} {path} was refused: {answer.status_code} {answer.text[:300]}")
        return None

    def _keep_picture(self, token: int) -> str:
        """Write a token's image where backfills find it; return its URI."""
        path = self._traffic.pictures / f"{token}.png"
        path.write_bytes(picture(token))
        return path.as_uri()

    def _next_write(self, kind: Kind) -> Write:
        self._token += 1
        return Write(self._token, kind)

    def _new_ids(self, count: int) -> list[str]:
        ids = [f"{self._number}-{len(self._ids) + offset}" for offset in range(count)]
        self._ids += ids
        return ids

    def _some_ids(self, count: int) -> list[str]:
        return self._chance.sample(self._ids, min(count, len(self._ids)))

    def _record(self, id_: str) -> Record:
        return self._traffic.oracle.records.get(id_, Record())
