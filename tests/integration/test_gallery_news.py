"""What PostgreSQL tells of galleries, also after the connection was lost."""

import queue

from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database
from service.gallery_news import GalleryNews
from tests.scenario import post_images
from tests.served import wait_for

_LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


def test_changes_are_told_with_their_revision_and_go_on_after_a_lost_connection(
    gallery: TestClient, database: Database
) -> None:
    told: queue.Queue[tuple[int, int | None]] = queue.Queue()
    news = GalleryNews(database.engine.url, lambda *change: told.put(change))
    before = listeners(database)
    news.start()
    try:
        wait_for(lambda: listeners(database) > before)
        post_images(gallery, [1])
        first = told.get(timeout=30)
        with database.session_scope() as session:
            session.execute(text(f"SELECT pg_terminate_backend(pid) FROM ({_LISTENERS}) AS listening"))
        wait_for(lambda: not listeners(database) & before)
        wait_for(lambda: len(listeners(database)) > len(before))
        post_images(gallery, [2])
        second = told.get(timeout=30)
    finally:
        news.stop()

    assert [first, second] == [(1, 1), (1, 2)]


def listeners(database: Database) -> set[int]:
    with database.session_scope() as session:
        return set(session.scalars(text(_LISTENERS)))
