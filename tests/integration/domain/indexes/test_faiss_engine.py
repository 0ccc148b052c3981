"""How an API process folds a new index file in, beside writes and searches, and what it does with a damaged one.

The client's replica follows every 0.1 s and folds in by itself; a test builds as a worker would, when it says so.
"""

import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.domain.indexes.faiss_engine import FaissEngine, FaissSource
from service.settings import Settings
from tests.fakes import Call, WatchedBlobs, WatchedEngine, WatchedSource
from tests.rebuilds import (
    FROM_ROWS,
    create_gallery_with_rows_for_a_file,
    damage,
    delete_image,
    found,
    is_nearest,
    jobs,
    leftovers,
    let_jobs_rest,
    rebuild,
    replace_image,
    row,
    served,
    soon_due,
)
from tests.replicas import watched_parts
from tests.scenario import post_images, search
from tests.served import wait_for
from workers.app import WorkerParts
from workers.rebuilding import rebuild_index


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """`param` are settings of a test's own."""
    return soon_due(settings, **getattr(request, "param", {}))


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    create_gallery_with_rows_for_a_file(client)
    return client


@pytest.fixture
def source(settings: Settings) -> Iterator[tuple[TestClient, WatchedSource]]:
    """The client of such a gallery, and the source that its replicas read."""
    parts, source = watched_parts(settings)
    with TestClient(create_app(settings, lambda _: parts)) as client:
        create_gallery_with_rows_for_a_file(client)
        yield client, source


@pytest.mark.parametrize("settings", [{"blob_url": f"memory://{uuid.uuid4().hex}"}], indirect=True)
def test_of_a_remote_store_a_machine_keeps_copies_of_what_is_named(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    rebuild(worker, gallery)
    cache = settings.data / "index_cache" / "indexes"
    first = cache / Path(row(worker, 1)["index_name"]).name
    assert first.exists()
    for name in ("generation_99.5.faiss", "dead.part", "young.part"):
        (cache / name).write_bytes(b"")
    os.utime(cache / "dead.part", (0, 0))
    post_images(gallery, range(50, 60))
    let_jobs_rest(worker, 60)

    rebuild(worker, gallery)

    second = Path(row(worker, 1)["index_name"]).name
    assert {path.name for path in cache.iterdir()} == {second, "young.part"}
    assert worker.blobs.list_files("indexes") == [second]
    damage(cache / second)
    with gallery_restarted(gallery) as restarted:
        assert sorted(found(restarted)) == sorted(found(gallery))
        assert not (cache / second).exists()
    with gallery_restarted(gallery):
        assert (cache / second).stat().st_size > 100


def test_a_rebuild_folds_tail_and_tombstones_in_and_changes_no_answer(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    rebuild(worker, gallery)
    first = row(worker, 1)
    replace_image(gallery, "image-1.png", 31)
    delete_image(gallery, 2)
    post_images(gallery, [50, 51, 52])
    before = [search(gallery, seed, k=50)["neighbors"] for seed in (1, 2, 31, 50)]
    assert leftovers(served(gallery).index) == (4, 2)
    let_jobs_rest(worker, 60)

    rebuild(worker, gallery)

    assert leftovers(served(gallery).index) == (0, 0)
    after = [search(gallery, seed, k=50)["neighbors"] for seed in (1, 2, 31, 50)]
    for one, other in zip(before, after, strict=True):
        assert [n["id"] for n in one] == [n["id"] for n in other]
        assert [n["distance"] for n in one] == pytest.approx([n["distance"] for n in other], abs=1e-2)
    second = row(worker, 1)
    assert second["index_revision"] == served(gallery).revision > first["index_revision"]
    assert [f"indexes/{name}" for name in worker.blobs.list_files("indexes")] == [second["index_name"]]
    assert jobs(gallery) == [("index_build", "succeeded")] * 2


def test_what_is_written_while_a_file_is_built_and_folded_in_is_found_at_once_and_stays(
    source: tuple[TestClient, WatchedSource], worker: WorkerParts
) -> None:
    gallery, watched = source
    rounds = iter(range(60, 99))
    written: set[str] = set()
    deleted: set[str] = set()

    def write() -> None:
        """Add an item, replace one and delete one; each is seen by the next query."""
        seed = next(rounds)
        post_images(gallery, [seed])
        replace_image(gallery, "image-1.png", seed + 100)
        delete_image(gallery, seed - 58)  # from 2 on
        written.add(f"image-{seed}.png")
        deleted.add(f"image-{seed - 58}.png")
        check(seed)

    def check(seed: int) -> None:
        assert is_nearest(gallery, f"image-{seed}.png", seed)
        assert is_nearest(gallery, "image-1.png", seed + 100)
        everything = {f"image-{number}.png" for number in range(FROM_ROWS)} - deleted | written
        assert set(found(gallery)) == everything

    def write_between(call: Call) -> None:
        if threading.current_thread().name == "loading":
            if call == "open_file" and len(written) == 1:
                write()  # the file is loaded, and the old index serves
            elif call == "follow" and len(written) == 2:
                write()  # the first pass of the file has read its changes, and the swap is still to come

    watched.after = write_between
    before = served(gallery).index
    rebuild(replace(worker, engine=WatchedEngine(worker.engine, write)), gallery)

    assert len(written) == 3
    assert served(gallery).index is not before
    check(62)
    with gallery_restarted(gallery) as restarted:
        assert sorted(found(restarted)) == sorted(found(gallery))


@contextmanager
def gallery_restarted(client: TestClient) -> Iterator[TestClient]:
    """A second process, started now, so that it loads the file and applies what came after."""
    with TestClient(create_app(client.app.state.parts.settings)) as second:  # type: ignore[attr-defined]  # untyped state
        wait_for(lambda: second.get("/readyz").status_code == 200)
        yield second


def test_searches_while_files_are_folded_in_are_never_without_an_item(gallery: TestClient, worker: WorkerParts) -> None:
    expected = set(found(gallery))
    stop = threading.Event()
    wrong: list[set[str]] = []

    def keep_asking() -> int:
        answers = 0
        while not stop.is_set():
            answer = set(found(gallery))
            answers += 1
            if not answer >= expected:
                wrong.append(expected - answer)
        return answers

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(keep_asking) for _ in range(2)]
        try:
            for start in (100, 110, 120):
                rebuild(worker, gallery)
                post_images(gallery, range(start, start + 10))
                let_jobs_rest(worker, 60)
        finally:
            stop.set()

    assert all(answers.result() > 0 for answers in asking)
    assert wrong == []
    assert len(jobs(gallery)) == 3


def test_a_file_that_is_damaged_is_left_alone_and_the_old_index_goes_on(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    rebuild(worker, gallery)
    before = served(gallery).index
    post_images(gallery, range(20, 30))
    let_jobs_rest(worker, 60)
    blobs = WatchedBlobs(settings.blob_location, written=lambda path: path.write_bytes(path.read_bytes()[:-100]))

    rebuild(replace(worker, engine=FaissEngine(worker.database, blobs, settings)), gallery)
    post_images(gallery, [40])

    assert served(gallery).index is before
    assert is_nearest(gallery, "image-40.png", 40)
    assert len(found(gallery)) == 21


def test_a_file_that_is_replaced_while_it_is_about_to_be_loaded_costs_a_second_look_and_no_rows(
    gallery: TestClient, worker: WorkerParts
) -> None:
    rebuild(worker, gallery)
    post_images(gallery, range(20, 30))
    let_jobs_rest(worker, 60)
    parts = gallery.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    wanted: list[str] = []

    def rebuild_first(name: str) -> None:
        wanted.append(name)
        if len(wanted) == 1:
            rebuild_index(worker, 1)

    blobs = WatchedBlobs(parts.settings.blob_location, wanted=rebuild_first)
    source = FaissSource(parts.database, blobs, parts.search.encoders, parts.settings)
    opened = source.open_file(1, 1)

    assert len(wanted) == 2
    assert opened is not None
    assert opened.index_sha256 == row(worker, 1)["index_sha256"]
    assert len(opened.index) == 20


def test_a_process_keeps_the_file_that_it_has_mapped_when_it_is_removed(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    rebuild(worker, gallery)

    shutil.rmtree(Path(settings.blob_location.removeprefix("file://")) / "indexes")

    assert len(found(gallery)) == FROM_ROWS
