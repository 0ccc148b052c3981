"""The client of asyncio, on the real application."""

import asyncio

import httpx
import pytest
from fastapi.testclient import TestClient

from gallery_upgrade import AsyncClient
from gallery_upgrade.problems import UnknownGallery
from tests.networks import image_bytes


def test_pages_of_a_search_are_awaited(gallery: TestClient) -> None:
    async def found() -> list[list[str]]:
        transport = httpx.ASGITransport(gallery.app)
        async with AsyncClient("http://testserver", transport=transport) as service:
            files = [image_bytes(seed) for seed in range(5)]
            await service.api.post_images(name="g", files=files, items=[{"id": str(seed)} for seed in range(5)])
            pages = service.search_pages("g", image_bytes(2), k=2, exclude_id="3")
            return [[hit.id for hit in page] async for page in pages]

    pages = asyncio.run(found())

    assert [len(page) for page in pages] == [2, 2]
    assert pages[0][0] == "2"
    assert sorted(id_ for page in pages for id_ in page) == ["0", "1", "2", "4"]


def test_calls_are_awaited_and_streams_come(gallery: TestClient) -> None:
    async def journey() -> tuple[list[str], list[str], bytes]:
        transport = httpx.ASGITransport(gallery.app)
        async with AsyncClient("http://testserver", transport=transport) as service:
            await service.api.post_images(
                name="g", files=[image_bytes(1), image_bytes(2)], items=[{"id": "a"}, {"id": "b"}]
            )
            found = await service.api.search_by_image(name="g", file=image_bytes(2), k=1)
            ids = [item.id async for item in service.pages(service.api.list_items, name="g", limit=1)]
            async with service.api.get_embeddings(name="g") as body:
                content = await body.read()
            with pytest.raises(UnknownGallery):
                await service.api.get_gallery(name="nowhere")
        return [hit.id for hit in found.neighbors], ids, content

    nearest, ids, content = asyncio.run(journey())

    assert nearest == ["b"]
    assert ids == ["a", "b"]
    assert content.endswith(b"\xff\xff\xff\xff\x00\x00\x00\x00")  # Arrow's end of stream
