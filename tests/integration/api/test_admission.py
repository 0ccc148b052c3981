"""Image queries that come together share batches and answer as alone; too many are refused, and the others served.

Everything runs in one event loop over the application itself, so that 200 clients are 200 coroutines.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models.artifacts import Encoder, NetworkForm
from service.api.dependencies import Parts
from service.app import create_app
from service.networks.encoders import Encoders, Vectors, VersionEncoder
from service.settings import Settings
from service.tables import ModelVersion
from tests.networks import image_bytes, solid_image_bytes
from tests.scenario import (
    DIMS,
    create_gallery,
    post_images,
    register_version,
)
from tests.served import wait_for

SEARCH = "/v1/galleries/g/search"
PATIENCE = 30.0
BLACK, WHITE = solid_image_bytes(0), solid_image_bytes(255)


class HeldEncoders(Encoders):
    """Encoders that, once loaded, note the size of each batch, and wait while they are held, v1's alone. A batch with a
    black image breaks them, and a white image has an embedding that is not finite."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.blobs, parts.settings, parts.image_query_metrics)
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self._loaded: VersionEncoder | None = None

    def _load(self, version: ModelVersion) -> VersionEncoder:
        self._loaded = super()._load(version)
        return self._loaded

    def asked(self) -> int:
        """Return how many images are in a batch that has begun, or queued for the next one."""
        queue = [] if self._loaded is None else list(self._loaded.queries._queue)
        return sum(self.batches) + sum(len(query.inputs) for query in queue)

    def _network(self, digest: str, output_dim: int, image: tuple[int, int, int], form: NetworkForm) -> Encoder:
        network = super()._network(digest, output_dim, image, form)

        def held(inputs: Vectors) -> Vectors:
            if self._loaded is None or output_dim != DIMS["v1"][0]:
                return network(inputs)
            self.batches.append(len(inputs))
            assert self.free.wait(PATIENCE)
            if (inputs == inputs.min(initial=-2.0)).all(axis=(1, 2, 3)).any():
                raise RuntimeError("black")
            return np.where((inputs == 2.0).all(axis=(1, 2, 3))[:, None], np.float32(np.nan), network(inputs))

        return held


@pytest.fixture
def app(settings: Settings, request: pytest.FixtureRequest) -> Iterator[FastAPI]:
    """An application that runs, with 8 images in a gallery `g`; `param` are settings of its own."""
    app = create_app(settings.model_copy(update=getattr(request, "param", {})))
    with TestClient(app) as client:
        register_version(client, "v1")
        create_gallery(client)
        post_images(client, range(8))
        yield app


@pytest.fixture
def encoders(app: FastAPI) -> Iterator[HeldEncoders]:
    """The application's encoders from now on; free at the end, whatever a test did."""
    encoders = HeldEncoders(app.state.parts)
    use_encoders(app, encoders)
    yield encoders
    encoders.free.set()


def use_encoders(app: FastAPI, encoders: Encoders) -> None:
    parts = app.state.parts
    writer, search = replace(parts.writer, encoders=encoders), replace(parts.search, encoders=encoders)
    app.state.parts = replace(parts, writer=writer, search=search)


@asynccontextmanager
async def clients(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=PATIENCE) as client:
        yield client


def ask(client: httpx.AsyncClient, image: bytes) -> Coroutine[Any, Any, httpx.Response]:
    return client.post(SEARCH, params={"k": 8}, content=image)


def admitted(app: FastAPI) -> float:
    value = app.state.parts.image_query_metrics.registry.get_sample_value("gallery_queries_admitted")
    assert value is not None
    return float(value)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def ask_together(
    app: FastAPI, encoders: HeldEncoders, images: Sequence[bytes], refused: int = 0
) -> list[httpx.Response]:
    """Ask by each image while the encoders are held, so that all but the `refused` have come to them when they are let
    go."""
    async with clients(app) as client:
        encoders.free.clear()
        encoders.batches.clear()
        asked = [asyncio.create_task(ask(client, image)) for image in images]
        await until(lambda: sum(query.done() for query in asked) == refused)
        await until(lambda: encoders.asked() == len(images) - refused)
        encoders.free.set()
        return await asyncio.gather(*asked)


async def ask_one_by_one(app: FastAPI, images: Sequence[bytes]) -> list[httpx.Response]:
    async with clients(app) as client:
        return [await ask(client, image) for image in images]


def check_same(answer: httpx.Response, alone: httpx.Response) -> None:
    """The same neighbours; their distances may differ in the last bits by the size of the batch."""
    assert (answer.status_code, alone.status_code) == (200, 200)
    found, expected = answer.json(), alone.json()
    assert [n["id"] for n in found["neighbors"]] == [n["id"] for n in expected["neighbors"]]
    distances = [[n["distance"] for n in body["neighbors"]] for body in (found, expected)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-4, abs=1e-4)


def test_queries_together_share_batches_and_find_what_they_find_alone(app: FastAPI, encoders: HeldEncoders) -> None:
    images = [image_bytes(seed, size=(8 + seed % 3, 8)) for seed in range(24)]
    alone = asyncio.run(ask_one_by_one(app, images))

    together = asyncio.run(ask_together(app, encoders, images))

    for answer, expected in zip(together, alone, strict=True):
        check_same(answer, expected)
    assert sum(encoders.batches) == 24
    assert len(encoders.batches) < 12


@pytest.mark.parametrize("app", [{"query_batch_images": 4}], indirect=True)
def test_a_batch_of_queries_is_as_large_as_it_may_be(app: FastAPI, encoders: HeldEncoders) -> None:
    asyncio.run(ask_together(app, encoders, [image_bytes(seed) for seed in range(16)]))

    assert sum(encoders.batches) == 16
    assert max(encoders.batches) <= 4


@pytest.mark.parametrize("app", [{"query_batch_images": 1}], indirect=True)
def test_without_batches_each_query_is_encoded_by_itself(app: FastAPI, encoders: HeldEncoders) -> None:
    answers = asyncio.run(ask_together(app, encoders, [image_bytes(seed) for seed in range(5)]))

    assert [answer.json()["neighbors"][0]["id"] for answer in answers] == [f"image-{seed}.png" for seed in range(5)]
    assert encoders.batches == [1] * 5


def test_a_bad_image_fails_its_own_query_alone(app: FastAPI, encoders: HeldEncoders) -> None:
    good = [image_bytes(seed) for seed in range(6)]
    alone = asyncio.run(ask_one_by_one(app, good))

    answers = asyncio.run(ask_together(app, encoders, [BLACK, *good[:3], WHITE, b"no image", *good[3:]], 1))

    assert [answers[number].status_code for number in (0, 4, 5)] == [500, 422, 422]
    assert "not finite" in answers[4].json()["detail"]
    for answer, expected in zip([*answers[1:4], *answers[6:]], alone, strict=True):
        check_same(answer, expected)


@pytest.mark.parametrize("app", [{"queries_at_once": 2, "queries_waiting": 4}], indirect=True)
def test_a_query_too_many_is_429_unread_and_answered_when_it_comes_again(app: FastAPI, encoders: HeldEncoders) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def scenario() -> None:
        async with clients(app) as client:
            encoders.free.clear()
            asked = [asyncio.create_task(ask(client, image_bytes(seed))) for seed in range(5)]
            await until(lambda: admitted(app) == 5)
            refused = await client.post(SEARCH, content=unread())
            vector = await client.post(f"{SEARCH}/vectors", json={"vectors": [[1.0] * 6]})
            encoders.free.set()
            answers = await asyncio.gather(*asked)
            again = await ask(client, image_bytes(6))
            metrics = (await client.get("/metrics")).text

        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["title"] == "Too Many Requests"
        assert vector.status_code == 200
        assert [answer.status_code for answer in [*answers, again]] == [200] * 6
        assert "gallery_queries_refused_total 1.0" in metrics
        assert "gallery_queries_admitted 0.0" in metrics
        assert "gallery_query_batch_images_sum 6.0" in metrics
        assert 'gallery_query_wait_seconds_count{waited_for="turn"} 6.0' in metrics

    asyncio.run(scenario())


def test_everything_else_is_answered_while_200_image_queries_wait(app: FastAPI, encoders: HeldEncoders) -> None:
    async def scenario() -> None:
        async with clients(app) as client:
            encoders.free.clear()
            asked = [asyncio.create_task(ask(client, image_bytes(seed))) for seed in range(200)]
            await until(lambda: admitted(app) == 200)
            others = [
                await client.get("/livez"),
                await client.get("/readyz"),
                await client.get("/metrics"),
                await client.delete("/v1/galleries/g/items/image-0.png"),
                await client.post(f"{SEARCH}/items", json={"ids": ["image-1.png"]}),
            ]
            encoders.free.set()
            answers = await asyncio.gather(*asked)

        assert [answer.status_code for answer in others] == [200, 200, 200, 204, 200]
        assert {answer.status_code for answer in answers} == {200}

    asyncio.run(scenario())


def test_the_process_is_seen_to_live_while_every_thread_is_taken(app: FastAPI, encoders: HeldEncoders) -> None:
    async def scenario() -> None:
        async with clients(app) as client:
            encoders.free.clear()
            files = {"files": ("x.png", image_bytes(1))}
            writes = [asyncio.create_task(client.post("/v1/galleries/g/images", files=files)) for _ in range(40)]
            await until(lambda: len(encoders.batches) == 40)
            alive = await client.get("/livez")
            encoders.free.set()
            answers = await asyncio.gather(*writes)

        assert alive.status_code == 200
        assert {answer.status_code for answer in answers} == {200}

    asyncio.run(scenario())


@contextmanager
def stopping(app: FastAPI, encoders: HeldEncoders, **options: Any) -> Iterator[list[int | None]]:
    """Ask a server by six images and stop it while the encoders are held. When the encoders were let go and the server
    has stopped, the list has each answer's status, or None for a connection that was cut."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, **options))
    socket = server.config.bind_socket()
    socket.listen()
    url = f"http://127.0.0.1:{socket.getsockname()[1]}{SEARCH}"
    statuses: list[int | None] = []

    def query(seed: int) -> None:
        try:
            statuses.append(httpx.post(url, content=image_bytes(seed), timeout=PATIENCE).status_code)
        except httpx.TransportError:
            statuses.append(None)

    encoders.free.clear()
    threads = [threading.Thread(target=server.run, args=([socket],))]
    threads += [threading.Thread(target=query, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: admitted(app) == 6)
    server.should_exit = True
    yield statuses
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("app", [{"queries_at_once": 2}], indirect=True)
def test_a_server_that_stops_answers_the_queries_that_it_has(app: FastAPI, encoders: HeldEncoders) -> None:
    with stopping(app, encoders) as statuses:
        encoders.free.set()

    assert statuses == [200] * 6


@pytest.mark.parametrize("app", [{"queries_at_once": 2}], indirect=True)
def test_a_server_whose_time_to_stop_is_over_leaves_no_query_waiting(app: FastAPI, encoders: HeldEncoders) -> None:
    with stopping(app, encoders, timeout_graceful_shutdown=1) as statuses:
        wait_for(lambda: admitted(app) == 0)
        encoders.free.set()

    assert len(statuses) == 6
    assert 200 not in statuses


def test_an_encoder_that_is_let_go_answers_who_waits_for_it(app: FastAPI, encoders: HeldEncoders) -> None:
    async def scenario() -> None:
        async with clients(app) as client:
            encoders.free.clear()
            asked = [asyncio.create_task(ask(client, image_bytes(seed))) for seed in range(6)]
            await until(lambda: admitted(app) == 6 and bool(encoders.batches))
            use_encoders(app, HeldEncoders(app.state.parts))
            later = await ask(client, image_bytes(7))
            encoders.free.set()
            answers = await asyncio.gather(*asked)

        assert {answer.status_code for answer in [later, *answers]} == {200}

    asyncio.run(scenario())


@pytest.mark.parametrize("app", [{"queries_at_once": 4, "queries_waiting": 12}], indirect=True)
def test_a_gallery_whose_network_computes_for_long_keeps_no_other_gallerys_images_waiting(
    app: FastAPI, encoders: HeldEncoders
) -> None:
    setting_up = TestClient(app)  # its lifespan has begun
    register_version(setting_up, "v2")
    create_gallery(setting_up, "other", "v2")
    post_images(setting_up, range(3), "other")

    async def scenario() -> None:
        async with clients(app) as client:
            encoders.free.clear()
            asked = [asyncio.create_task(ask(client, image_bytes(seed))) for seed in range(12)]
            await until(lambda: admitted(app) == 12)
            async with asyncio.timeout(PATIENCE / 2):
                answer = await client.post("/v1/galleries/other/search", content=image_bytes(1))
            refused = await ask(client, image_bytes(1))
            still_waiting = not any(query.done() for query in asked)
            encoders.free.set()
            answers = await asyncio.gather(*asked)

        assert (answer.status_code, answer.json()["neighbors"][0]["id"]) == (200, "image-1.png")
        assert refused.status_code == 429
        assert "12 of them of this gallery" in refused.json()["detail"]
        assert still_waiting
        assert [answer.status_code for answer in answers] == [200] * 12

    asyncio.run(scenario())
