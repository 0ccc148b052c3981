"""The command `gallery-upgrade`: `serve` runs everything; `api`, `worker` and `migrate` one part alone;
`train-transformation` is a client of a running service, and `openapi` prints what its API is."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.settings import Settings

main = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

# How long requests that run, event streams among them, keep the API from stopping.
_SHUTDOWN_SECONDS = 10

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]


@main.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data: Annotated[Path | None, typer.Option(help="Folder for everything that is kept [default: ./data].")] = None,
) -> None:
    """Start PostgreSQL, Valkey, a worker and the API; stop them all on Ctrl-C or SIGTERM.

    With GALLERY_DATABASE_URL and GALLERY_BROKER_URL set, those servers are used instead of embedded ones.
    """
    from service.embedded.supervisor import ServeError, serve_everything

    settings = Settings() if data is None else Settings(data=data)
    try:
        serve_everything(settings, host, port)
    except ServeError as error:
        typer.echo(f"gallery-upgrade: {error}", err=True)
        raise typer.Exit(1) from error


@main.command()
def api(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run the HTTP API alone, against GALLERY_DATABASE_URL, GALLERY_BROKER_URL and GALLERY_BLOB_URL."""
    import uvicorn

    from service import crash_points
    from service.app import create_app
    from service.logs import configure_logging

    settings = _external_settings()
    configure_logging()
    _migrate(settings)
    crash_points.arm(settings.crash_at)
    uvicorn.run(
        create_app(settings),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )


@main.command()
def worker() -> None:
    """Run one worker alone, one per device, against the same variables as `api`."""
    from service.embedded.supervisor import worker_command

    _external_settings()
    os.execv(sys.executable, worker_command())


@main.command()
def migrate() -> None:
    """Bring the database that GALLERY_DATABASE_URL names to the newest schema."""
    _migrate(_external_settings())


@main.command()
def train_transformation(
    server: Annotated[str, typer.Option(help="Address of the service, such as http://127.0.0.1:8000.")],
    from_version: Annotated[str, typer.Option("--from", help="Model version that galleries are under.")],
    to_version: Annotated[str, typer.Option("--to", help="Model version to lead to.")],
    pairs: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Parquet of paired vectors to upload.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set below the service's GALLERY_DATASETS.")] = None,
    with_g: Annotated[bool, typer.Option("--with-g", help="Train g too: the gallery will be upgraded again.")] = False,
    recipe: Annotated[str | None, typer.Option(help="How to train: default or paper.")] = None,
    task: Annotated[str | None, typer.Option(help="What galleries are searched for: instance or class.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the rows.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything that is random.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the training until it has ended.")] = True,
) -> None:
    """Train h (and g) on a running service, and print the transformation and its held-out metrics."""
    from service.cli.training_client import TrainingFailed, ask_for_training, follow_training

    if (pairs is None) == (dataset is None):
        raise typer.BadParameter("give one of --pairs and --dataset")
    options = {"recipe": recipe, "task": task, "epochs": epochs, "seed": seed}
    wanted = {
        "from_version": from_version,
        "to_version": to_version,
        "with_g": with_g,
        "options": {name: value for name, value in options.items() if value is not None},
        **({} if dataset is None else {"dataset": dataset}),
    }
    try:
        job_id = ask_for_training(server, wanted, pairs)
        typer.echo(f"job {job_id}")
        if wait:
            transformation = follow_training(server, job_id)
            typer.echo(f"transformation {transformation['id']}")
            typer.echo(json.dumps(transformation["metrics"], indent=2))
    except TrainingFailed as error:
        typer.echo(f"gallery-upgrade: {error}", err=True)
        raise typer.Exit(1) from error


@main.command()
def openapi() -> None:
    """Print the API's OpenAPI document."""
    from service.app import create_app

    typer.echo(json.dumps(create_app(Settings()).openapi(), indent=2, sort_keys=True))


def _external_settings() -> Settings:
    settings = Settings()
    missing = [f"GALLERY_{name.upper()}" for name in ("database_url", "broker_url") if getattr(settings, name) is None]
    if missing:
        typer.echo(f"gallery-upgrade: set {' and '.join(missing)}, or use `gallery-upgrade serve`.", err=True)
        raise typer.Exit(2)
    return settings


def _migrate(settings: Settings) -> None:
    from migrations import upgrade_database
    from service.db import create_database_engine

    assert settings.database_url is not None
    engine = create_database_engine(settings.database_url)
    upgrade_database(engine)
    engine.dispose()
