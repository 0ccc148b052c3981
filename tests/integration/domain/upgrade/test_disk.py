"""Space on disk is looked at before an upgrade begins: rows, their log, the index, and the reserve."""

import pytest

from service.disk import NoRoom, free_bytes
from service.domain.upgrade.disk import Bytes, check_room
from service.settings import Settings


@pytest.mark.parametrize(
    ("database_url", "blob_url", "needed"),
    [
        ("postgresql+psycopg://x@/x?host=/run", None, 2 * 1_000 + 50),  # the rows are in PostgreSQL's log too
        ("postgresql+psycopg://x@/x?host=/run", "s3://bucket", 2 * 1_000),
        ("postgresql+psycopg://x@elsewhere/x", None, 50),
        ("postgresql+psycopg://x@elsewhere/x", "s3://bucket", 0),
    ],
)
def test_an_upgrade_that_would_leave_less_than_the_reserve_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, database_url: str, blob_url: str | None, needed: int
) -> None:
    reserve = 2**30
    of_servers = settings.model_copy(
        update={"database_url": database_url, "blob_url": blob_url, "disk_reserve_bytes": reserve}
    )

    monkeypatch.setattr("service.domain.upgrade.disk.free_bytes", lambda _: reserve + needed)
    check_room(of_servers, Bytes(database=1_000, index=50))

    monkeypatch.setattr("service.domain.upgrade.disk.free_bytes", lambda _: reserve + needed - 1)
    with pytest.raises(NoRoom, match="make room, or put the database elsewhere"):
        check_room(of_servers, Bytes(database=1_000, index=50))


def test_the_disk_is_that_of_the_data_folder_or_of_where_it_will_be(settings: Settings) -> None:
    below = settings.model_copy(update={"data": settings.data / "not" / "there"})

    assert free_bytes(below) > 0
