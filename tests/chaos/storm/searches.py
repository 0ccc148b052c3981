"""Who searches during the storm, and what makes an answer wrong: a neighbour at a distance that no write of it explains
in the space of the generation that answered, or one that was deleted before the search began."""

import random
import time
from functools import lru_cache
from typing import Any

import numpy as np

from service.vectors.rows import Origin
from tests.chaos.storm.oracle import Record
from tests.chaos.storm.traffic import GALLERY, Client, Traffic
from tests.chaos.storm.values import Vectors, Write, picture

_DISTANCE_TOLERANCE = 0.05  # of distances around 15: float16 rounding, and float32 sums in another order
_PAUSE_SECONDS = 0.03
_K = 10


class Searcher:
    """Searches by vectors and by images, in the active generation and in the next one."""

    def __init__(self, traffic: Traffic, client: Client, chance: random.Random) -> None:
        self._traffic = traffic
        self._client = client
        self._chance = chance
        self._ids = list(traffic.oracle.records)
        self._embedding = lru_cache(maxsize=50_000)(self._embedding_of)

    def run(self) -> None:
        while not self._traffic.stopping.is_set():
            record = self._traffic.oracle.records[self._chance.choice(self._ids)]
            if record.ever and record.ever[-1].kind == "image":
                self.search_by_image(record.ever[-1])
            elif record.ever:
                self.search_by_vector(record.ever[-1])
            self._traffic.stopping.wait(_PAUSE_SECONDS)

    def search_by_image(self, write: Write) -> None:
        which = self._chance.choice(("active", "active", "next"))
        form = {"files": {"file": ("query.png", picture(write.token))}, "data": {"k": str(_K)}}
        started = time.monotonic()
        answer = self._client.send("POST", f"{GALLERY}/search", params={"generation": which}, **form)
        body = self._body(answer, conflict_is_right=which == "next")
        if body is not None:
            (query,) = self._traffic.reference.encoded(body["model_version"], [write.token])[0]
            self._check(body, body["neighbors"], query, started)

    def search_by_vector(self, write: Write) -> None:
        """Half of the queries say which version they are of, and may then be refused; the rest take any answer."""
        said = self._chance.choice(("v1", "v2", None, None))
        version = said or ("v1" if write.kind == "v1" else "v2")
        query = self._embedding(version, _any_origin(write, version), write)
        if query is None:
            return
        body: dict[str, Any] = {"vectors": [query.tolist()], "k": _K}
        if said is not None:
            body["model_version"] = said
        started = time.monotonic()
        answer = self._body(
            self._client.send("POST", f"{GALLERY}/search/vectors", json=body), conflict_is_right=said is not None
        )
        if answer is not None:
            if said not in (None, answer["model_version"]):
                self._traffic.violations.add(f"a query of {said} was answered by {answer['model_version']}")
            self._check(answer, answer["neighbors"][0], query, started)

    def _body(self, answer: Any, *, conflict_is_right: bool) -> dict[str, Any] | None:
        if answer is None or answer.status_code >= 500:
            self._traffic.count("searches failed")
            return None
        if answer.status_code == 409 and conflict_is_right:
            self._traffic.count("searches refused")
            return None
        if not answer.is_success:
            self._traffic.violations.add(f"a search was refused: {answer.status_code} {answer.text[:300]}")
            return None
        self._traffic.count("searches")
        body: dict[str, Any] = answer.json()
        return body

    def _check(self, body: dict[str, Any], neighbors: list[dict[str, Any]], query: Vectors, started: float) -> None:
        traffic, version = self._traffic, body["model_version"]
        traffic.learn_generation(body["generation"], version)
        where = f"in generation {body['generation']} ({version}) at revision {body['revision']}"
        distances = [neighbor["distance"] for neighbor in neighbors]
        if distances != sorted(distances) or len({neighbor["id"] for neighbor in neighbors}) < len(neighbors):
            traffic.violations.add(f"neighbours {where} are not in order or double: {neighbors}")
        for neighbor in neighbors:
            record = traffic.oracle.records.get(neighbor["id"], Record())
            if record.is_absent and record.settled_at < started:
                traffic.violations.add(f"{neighbor['id']} was answered {where} after it was deleted")
            elif not self._is_explained(version, neighbor["distance"], query, record.ever):
                traffic.violations.add(f"the distance of {neighbor} {where} is of none of {record.ever}")
            traffic.count("neighbours checked")

    def _is_explained(self, version: str, distance: float, query: Vectors, writes: tuple[Write, ...]) -> bool:
        for write in reversed(writes):
            for origin in (Origin.TRANSFORMED, Origin.IMPORTED, Origin.ENCODED):  # a backfilled row is an encoded one's
                embedding = self._embedding(version, origin, write)
                if embedding is not None and abs(np.linalg.norm(embedding - query) - distance) < _DISTANCE_TOLERANCE:
                    return True
        return False

    def _embedding_of(self, version: str, origin: Origin, write: Write) -> Vectors | None:
        pair = self._traffic.reference.expected(version, origin, [write])
        return None if pair is None else pair[0][0]


def _any_origin(write: Write, version: str) -> Origin:
    if write.kind == "image":
        return Origin.ENCODED
    is_transformed = write.kind == "v1" and version == "v2"
    return Origin.TRANSFORMED if is_transformed else Origin.IMPORTED
