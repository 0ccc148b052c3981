"""The command `gallery-upgrade`: `serve` runs everything; `api`, `worker` and `migrate` one part alone;
`openapi` and `metrics` print what the API and its metrics are. The commands of a client (`gallery_upgrade.cli`) ask a
running service. `transform` and `verify` (`edge`) work on files alone, where nothing else of this repository may be
installed: what the other commands run with is imported when they run."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.commands import transform, verify
from service.cli.audit import audit
from service.cli.keys import keys
from service.cli.record import record

if TYPE_CHECKING:
    from service.settings import Settings

main = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
main.add_typer(audit, name="audit")
main.add_typer(record, name="record")
main.add_typer(keys, name="keys")

_PRIVATE = 0o077  # what is stored is closed to other users

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]
Certificate = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="PEM of a certificate chain: listen with TLS.")
]
CertificateKey = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="PEM of its private key.")]
Processes = Annotated[
    int | None, typer.Option(min=1, max=256, help="How many API processes share the port [default: 1].")
]


@main.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data: Annotated[Path | None, typer.Option(help="Folder for everything that is kept [default: ./data].")] = None,
    ssl_certfile: Certificate = None,
    ssl_keyfile: CertificateKey = None,
    processes: Processes = None,
) -> None:
    """Start PostgreSQL, Valkey, a worker and the API; stop them all on Ctrl-C or SIGTERM.

    With GALLERY_DATABASE_URL and GALLERY_BROKER_URL set, those servers are used instead of embedded ones.
    """
    from service.embedded.addresses import Address
    from service.embedded.supervisor import serve_everything
    from service.settings import Settings

    settings = _with_processes(Settings() if data is None else Settings(data=data), processes)
    with _sentences():
        serve_everything(settings, Address(host, port, ssl_certfile, ssl_keyfile))


@main.command()
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    ssl_certfile: Certificate = None,
    ssl_keyfile: CertificateKey = None,
    processes: Processes = None,
) -> None:
    """Run the HTTP API alone, against GALLERY_DATABASE_URL, GALLERY_BROKER_URL and GALLERY_BLOB_URL."""
    from service.embedded.addresses import Address
    from service.embedded.api_processes import serve_processes
    from service.logs import configure_logging

    settings = _with_processes(_external_settings(), processes)
    address = Address(host, port, ssl_certfile, ssl_keyfile)
    os.umask(_PRIVATE)
    configure_logging(settings.log_format)
    _migrate(settings)
    settings = _with_keys(settings, host)
    if settings.processes == 1:
        from service.cli.api import run_api

        run_api(settings, address)
    else:
        with _sentences():
            serve_processes(settings.processes, address, {**os.environ, **settings.environment()})


@main.command("api-process", hidden=True)
def api_process(
    number: Annotated[int, typer.Option(min=0)],
    gate: Annotated[int, typer.Option(min=0)],
    listener: Annotated[list[int], typer.Option(min=0)],
    ssl_certfile: Certificate = None,
    ssl_keyfile: CertificateKey = None,
) -> None:
    """Run one of several API processes, as `api --processes` starts it: with a database that is migrated, sockets that
    are bound, and a gate to wait at."""
    from service.cli.api import run_one_of_several
    from service.logs import configure_logging
    from service.settings import Settings

    settings = Settings()
    os.umask(_PRIVATE)
    configure_logging(settings.log_format)
    run_one_of_several(settings, number, gate, listener, (ssl_certfile, ssl_keyfile))


@main.command()
def worker() -> None:
    """Run one worker alone, one per device, against the same variables as `api`."""
    from service.embedded.supervisor import worker_command

    _external_settings()
    os.umask(_PRIVATE)
    os.execv(sys.executable, worker_command())


@main.command()
def migrate() -> None:
    """Bring the database that GALLERY_DATABASE_URL names to the newest schema."""
    _migrate(_external_settings())


@main.command()
def openapi() -> None:
    """Print the API's OpenAPI document."""
    from service.app import create_app
    from service.settings import Settings

    typer.echo(json.dumps(create_app(Settings()).openapi(), indent=2, sort_keys=True))


@main.command()
def metrics() -> None:
    """Print the table of the metrics that the API and its workers have, as docs/operations/metrics.md shows it."""
    from service.cli.metrics_page import metrics_table

    typer.echo(metrics_table())


main.command()(transform)
main.command()(verify)
if find_spec("gallery_upgrade") is not None:
    from gallery_upgrade.cli import mount
    from service.cli.stores import read_store

    mount(main, read_store)


@contextmanager
def _sentences() -> Iterator[None]:
    """Print why nothing is served, and exit with 1."""
    from service.embedded.addresses import ServeError

    try:
        yield
    except ServeError as error:
        typer.echo(f"gallery-upgrade: {error}", err=True)
        raise typer.Exit(1) from error


def _with_processes(settings: "Settings", processes: int | None) -> "Settings":
    """Return settings with what the command line says of processes; end this one where they cannot be several."""
    settings = settings if processes is None else settings.model_copy(update={"processes": processes})
    if settings.processes > 1 and settings.index_url is not None and settings.index_url.endswith(".db"):
        typer.echo(
            "gallery-upgrade: Milvus Lite opens a file in one process: serve it by `milvus-lite server`, and set"
            " GALLERY_INDEX_URL to its http:// address, for several API processes.",
            err=True,
        )
        raise typer.Exit(2)
    return settings


def _external_settings() -> "Settings":
    from service.settings import Settings

    settings = Settings()
    missing = [f"GALLERY_{name.upper()}" for name in ("database_url", "broker_url") if getattr(settings, name) is None]
    if missing:
        typer.echo(f"gallery-upgrade: set {' and '.join(missing)}, or use `gallery-upgrade serve`.", err=True)
        raise typer.Exit(2)
    return settings


def _with_keys(settings: "Settings", host: str) -> "Settings":
    """Return settings that say whether keys are needed; end the process where they are and nobody has one."""
    from service import logs
    from service.access.keys import is_any_admin
    from service.db import Session, create_database_engine

    if not settings.needs_keys(host):
        if settings.auth == "off":
            logs.Events(__name__).warning("access.off", host=host, meaning="whoever reaches the port may do everything")
        return settings
    assert settings.database_url is not None
    engine = create_database_engine(settings.database_url)
    with Session(engine) as session:
        has_key = bool(settings.admin_key) or is_any_admin(session)
    engine.dispose()
    if not has_key:
        typer.echo(
            f"gallery-upgrade: on {host}, nobody is served without a key, and there is none: make the first one with"
            " `gallery-upgrade keys create --scopes admin`, or set GALLERY_ADMIN_KEY to what"
            " `gallery-upgrade keys draw` prints. GALLERY_AUTH=off serves whoever reaches the port.",
            err=True,
        )
        raise typer.Exit(2)
    return settings.model_copy(update={"auth": "on"})


def _migrate(settings: "Settings") -> None:
    from migrations import upgrade_database
    from service.db import create_database_engine

    assert settings.database_url is not None
    engine = create_database_engine(settings.database_url)
    upgrade_database(engine)
    engine.dispose()
