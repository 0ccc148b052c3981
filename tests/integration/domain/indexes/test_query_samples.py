"""The sample that is kept of a gallery's queries: what gets into it and what goes, through deletions and outages."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest
from sqlalchemy import make_url, text

from service.db import Database, create_database_engine
from service.domain.gallery.galleries import WantedGallery, create_gallery, delete_gallery
from service.domain.indexes.query_samples import QuerySamples, fewest_queries, read_query_sample
from service.domain.registry.versions import delete_version
from service.index.protocol import Vectors
from service.settings import Settings
from service.tables import ModelVersion
from tests.fakes import RecordingQueue
from tests.served import wait_for

DIM = 2

OF_ONE_REQUEST = 10


@pytest.fixture
def database(database: Database) -> Database:
    """A database with model versions 1 and 2, and galleries 1 and 2 under the first."""
    with database.session_scope() as session:
        for name in ("v1", "v2"):
            session.add(
                ModelVersion(
                    name=name,
                    embedding_dim=DIM,
                    normalize=False,
                    preprocessing={},
                    embedding_model_digest=name,
                    embedding_model_kind="onnx",
                )
            )
        session.flush()  # galleries look for it
        for name in ("g", "h"):
            create_gallery(session, WantedGallery(name, "v1", "l2", "float16", thumbnails=False))
    return database


@pytest.fixture
def second(database: Database) -> Iterator[Database]:
    """The same database, as another process connects to it."""
    engine = create_database_engine(database.engine.url.render_as_string(hide_password=False))
    yield Database(engine, RecordingQueue())
    engine.dispose()


def kept(database: Database, gallery_id: int = 1, version_id: int = 1, limit: int = 10_000) -> Vectors:
    with database.session_scope() as session:
        return read_query_sample(session, gallery_id, version_id, DIM, limit)


def numbered(start: int, stop: int) -> Vectors:
    """Return vectors that tell by their first number which they are."""
    return np.stack([np.arange(start, stop), np.full(stop - start, 0.1)], axis=1).astype(np.float32)


def note_each(samples: QuerySamples, gallery_id: int, version_id: int, vectors: Vectors) -> None:
    """Note them as so many requests that none is too large."""
    for start in range(0, len(vectors), OF_ONE_REQUEST):
        samples.note(gallery_id, version_id, vectors[start : start + OF_ONE_REQUEST])


def numbers(vectors: Vectors) -> list[int]:
    return sorted(int(number) for number in vectors[:, 0])


def test_queries_are_read_back_as_they_were_when_they_were_noted(database: Database) -> None:
    samples = QuerySamples(database, slots=1_000)
    asked = numbered(0, 7)

    note_each(samples, 1, 1, asked)
    asked[:] = 0
    note_each(samples, 1, 1, numbered(7, 10))
    note_each(samples, 1, 2, numbered(20, 21))
    samples.write()

    vectors = kept(database)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[np.argsort(vectors[:, 0])], numbered(0, 10))
    assert numbers(kept(database, version_id=2)) == [20]
    assert kept(database, gallery_id=2).shape == (0, DIM)


def test_of_a_large_batch_only_some_are_kept_drawn_from_all(database: Database) -> None:
    samples = QuerySamples(database, slots=1_000)
    drawn: set[int] = set()

    for version_id in (1, 2):
        samples.note(1, version_id, numbered(0, 1_000))
        samples.write()
        part = numbers(kept(database, version_id=version_id))
        assert len(set(part)) == OF_ONE_REQUEST
        drawn |= set(part)

    assert len(drawn) > OF_ONE_REQUEST
    assert max(drawn) > 100


def test_a_process_that_keeps_none_removes_what_others_write(database: Database) -> None:
    none, other = QuerySamples(database, slots=0, write_every_seconds=0.05), QuerySamples(database, slots=10)
    none.start()
    try:
        for _ in range(2):
            note_each(other, 1, 1, numbered(0, 5))
            other.write()
            wait_for(lambda: len(kept(database)) == 0)
    finally:
        none.stop()


def test_a_part_of_the_sample_is_drawn_anew_each_time(database: Database) -> None:
    samples = QuerySamples(database, slots=1_000)
    note_each(samples, 1, 1, numbered(0, 100))
    samples.write()

    drawn = [numbers(kept(database, limit=10)) for _ in range(20)]

    assert all(len(set(part)) == 10 for part in drawn)
    assert len({number for part in drawn for number in part}) > 50


def test_the_sample_is_bounded_and_new_queries_take_the_place_of_old_ones(database: Database) -> None:
    samples = QuerySamples(database, slots=40)

    note_each(samples, 1, 1, numbered(0, 1_000))
    samples.write()
    first = numbers(kept(database))
    note_each(samples, 1, 1, numbered(1_000, 1_010))
    samples.write()
    second = numbers(kept(database))
    for start in range(2_000, 3_000, 10):
        note_each(samples, 1, 1, numbered(start, start + 10))
        samples.write()

    assert len(set(first)) == 40
    assert set(second) - set(first) == set(range(1_000, 1_010))
    last = numbers(kept(database))
    assert len(set(last)) == 40
    assert min(last) >= 2_000


def test_no_query_takes_the_place_of_another_while_there_is_room(database: Database) -> None:
    samples = QuerySamples(database, slots=100)

    for start in range(0, 100, 10):
        note_each(samples, 1, 1, numbered(start, start + 10))
        samples.write()

    assert sorted(numbers(kept(database))) == list(range(100))


@pytest.mark.parametrize("slots", [30, 500])
def test_all_queries_between_two_writings_are_as_likely_to_be_kept(database: Database, slots: int) -> None:
    samples = QuerySamples(database, slots)
    drawn: list[int] = []

    while len(drawn) < 3_000:
        with database.session_scope() as session:
            session.execute(text("DELETE FROM query_samples"))
        for start, stop in ((0, 1), (1, 50), (50, 1_000), (1_000, 1_001), (1_001, 3_000)):
            note_each(samples, 1, 1, numbered(start, stop))
        samples.write()
        found = numbers(kept(database))
        assert len(set(found)) == min(slots, 100)
        drawn += found

    counts = np.histogram(drawn, bins=10, range=(0, 3_000))[0]
    assert counts.min() > 0.7 * len(drawn) / 10
    assert counts.max() < 1.3 * len(drawn) / 10
    assert len([number for number in drawn if number < 100]) > 40  # those that filled the first places


def test_without_slots_no_query_is_kept_and_those_that_were_are_removed(database: Database) -> None:
    before = QuerySamples(database, slots=1_000)
    note_each(before, 1, 1, numbered(0, 100))
    before.write()

    none = QuerySamples(database, slots=0)
    note_each(none, 1, 1, numbered(0, 100))
    none.write()
    assert len(kept(database)) == 100
    none.start()
    none.stop()

    assert len(kept(database)) == 0


def test_fewer_slots_than_before_remove_what_is_beyond_them(database: Database) -> None:
    for slots in (1_000, 20):
        samples = QuerySamples(database, slots)
        samples.start()
        note_each(samples, 1, 1, numbered(0, 100))
        samples.stop()

    assert len(kept(database)) == 20


def test_what_was_noted_before_the_end_is_written(database: Database) -> None:
    samples = QuerySamples(database, slots=1_000)
    samples.start()

    note_each(samples, 1, 1, numbered(0, 3))
    samples.stop()

    assert numbers(kept(database)) == [0, 1, 2]


def test_queries_of_a_gallery_or_a_version_that_is_gone_are_dropped_and_the_others_written(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    samples = QuerySamples(database, slots=1_000)
    for gallery_id, version_id in ((1, 1), (1, 2), (2, 1), (2, 2)):
        note_each(samples, gallery_id, version_id, numbered(0, 2))
    with database.session_scope() as session:
        delete_gallery(session, "g")
        delete_version(session, "v2")

    with caplog.at_level(logging.INFO):
        samples.write()

    assert numbers(kept(database, gallery_id=2)) == [0, 1]
    with database.session_scope() as session:
        assert session.scalar(text("SELECT count(*) FROM query_samples")) == 2
    assert [record.getMessage().split()[0] for record in caplog.records] == ["query_sample.unwanted"] * 3


def test_a_gallery_and_an_unused_version_are_deleted_with_their_queries(database: Database) -> None:
    samples = QuerySamples(database, slots=1_000)
    for gallery_id, version_id in ((1, 1), (2, 1), (2, 2)):
        note_each(samples, gallery_id, version_id, numbered(0, 3))
    samples.write()

    with database.session_scope() as session:
        delete_gallery(session, "g")
    with database.session_scope() as session:
        delete_version(session, "v2")

    with database.session_scope() as session:
        query = text("SELECT gallery_id, model_version_id, count(*) FROM query_samples GROUP BY 1, 2")
        assert session.execute(query).all() == [(2, 1, 3)]


def wait_until_waiting(database: Database, count: int) -> None:
    """Wait until so many connections wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.reading() as session:
        wait_for(lambda: session.scalar(text(query)) == count)


def test_processes_that_write_the_same_sample_at_once_wait_for_one_another_and_in_no_circle(
    database: Database, second: Database, caplog: pytest.LogCaptureFixture
) -> None:
    writers = [QuerySamples(each, slots=100) for each in (database, second)]
    note_each(writers[0], 1, 1, numbered(0, 100))
    writers[0].write()

    with ThreadPoolExecutor() as threads, database.session_scope() as session:
        session.execute(text("SELECT FROM query_samples WHERE slot = 50 FOR UPDATE"))
        for writer, start in zip(writers, (1_000, 2_000), strict=True):
            note_each(writer, 1, 1, numbered(start, start + 100))
            threads.submit(writer.write)
        wait_until_waiting(second, 2)

    assert caplog.records == []
    found = numbers(kept(database))
    assert found in (list(range(1_000, 1_100)), list(range(2_000, 2_100)))


def test_a_gallery_is_deleted_while_its_queries_are_written(
    database: Database, second: Database, caplog: pytest.LogCaptureFixture
) -> None:
    samples = QuerySamples(database, slots=100)
    note_each(samples, 1, 1, numbered(0, 100))
    samples.write()

    def delete() -> None:
        with second.session_scope() as session:
            delete_gallery(session, "g")

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            session.execute(text("DELETE FROM query_samples WHERE slot <> 50"))
        with database.session_scope() as session:
            session.execute(text("SELECT FROM query_samples WHERE slot = 50 FOR UPDATE"))
            note_each(samples, 1, 1, numbered(0, 100))
            threads.submit(samples.write)
            wait_until_waiting(second, 1)
            deleting = threads.submit(delete)
            wait_until_waiting(database, 2)
        deleting.result()

    assert caplog.records == []
    assert len(kept(database)) == 0


def test_an_outage_of_the_database_costs_what_was_to_be_written_and_a_line_in_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    samples = QuerySamples(database, slots=1_000, write_every_seconds=0.05)
    samples.start()
    note_each(samples, 1, 1, numbered(0, 1))
    wait_for(lambda: numbers(kept(database)) == [0])

    with OutOfReach(database):
        note_each(samples, 1, 1, numbered(1, 50))
        wait_for(lambda: len(caplog.records) > 0)
    note_each(samples, 1, 1, numbered(50, 51))
    wait_for(lambda: numbers(kept(database)) == [0, 50])
    samples.stop()

    (line,) = [record.getMessage() for record in caplog.records]
    assert "query_sample.not_written reason='OperationalError: " in line
    assert "gallery_id=1" in line
    assert len(line) < 1_000  # and none of the vectors


def test_however_sharp_recall_is_wanted_the_queries_that_can_be_kept_are_enough(settings: Settings) -> None:
    def fewest(recall_sample_items: int, query_sample_items: int) -> int:
        wanted = {"recall_sample_items": recall_sample_items, "query_sample_items": query_sample_items}
        return fewest_queries(settings.model_copy(update=wanted))

    assert (fewest(200, 1_000), fewest(5_000, 1_000), fewest(201, 300)) == (100, 500, 101)
    assert fewest(200, 0) > 0


class OutOfReach:
    """The database refuses connections, and those that there were have broken."""

    def __init__(self, database: Database) -> None:
        url = make_url(database.engine.url)
        self._name = url.database
        self._maintenance = url.set(database="postgres", drivername="postgresql").render_as_string(hide_password=False)

    def __enter__(self) -> None:
        self._allow(False)
        with psycopg.connect(self._maintenance, autocommit=True) as connection:
            query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(query, (self._name,))

    def __exit__(self, *_: object) -> None:
        self._allow(True)

    def _allow(self, allowed: bool) -> None:
        with psycopg.connect(self._maintenance, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS {allowed}")
