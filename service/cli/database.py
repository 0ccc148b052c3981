"""The database of commands that work on it themselves, without the API."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.db import Session

Data = Annotated[Path | None, typer.Option(help="Folder of an embedded database [default: ./data].")]


@contextmanager
def database_session(data: Path | None, *, snapshot: bool = False, migrated: bool = False) -> Iterator["Session"]:
    """One transaction on the database that GALLERY_DATABASE_URL names, or else on the embedded one, which is started
    for this where it does not run; with `migrated`, it is brought to the newest schema before. A refusal is one line,
    and exit code 1."""
    from migrations import upgrade_database
    from service.db import Database, create_database_engine
    from service.errors import GalleryError
    from service.queue import TaskQueue, celery_application
    from service.settings import Settings

    settings = Settings() if data is None else Settings(data=data)
    try:
        with _database_url(settings.database_url, settings.data) as url:
            engine = create_database_engine(url)
            if migrated:
                upgrade_database(engine)
            database = Database(engine, TaskQueue(celery_application(settings)))
            with database.session_scope(snapshot=snapshot) as session:
                yield session
            engine.dispose()
    except (GalleryError, RuntimeError) as error:  # both are sentences for the operator
        typer.echo(f"gallery-upgrade: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def _database_url(url: str | None, data: Path) -> Iterator[str]:
    from service.embedded.servers import DataFolderInUse, EmbeddedServers

    if url is not None:
        yield url
        return
    servers = EmbeddedServers(data / "servers")
    try:
        servers.start()
    except DataFolderInUse:  # `serve` runs it
        yield servers.database_url
        return
    try:
        yield servers.database_url
    finally:
        servers.stop()
