"""What metrics cost: a scrape and a look with many galleries that are all upgraded, and what counting adds to a search.

python -m benchmarks.scraping --galleries 1000
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, text

from benchmarks.setting import machine, register_versions, worker_with_servers
from service.app import create_app
from service.domain.gallery.galleries import WantedGallery, create_gallery
from service.metrics import ENCODER_BUSY, REQUEST_SECONDS, REQUESTS
from service.networks.micro_batching import ImageQueryMetrics
from service.settings import Settings

_BATCHES = 50


def run(
    galleries: Annotated[
        int, typer.Option(help="How many there are, each with an open upgrade of 50 batches.")
    ] = 1_000,
    labelled: Annotated[list[int] | None, typer.Option(help="GALLERY_METRICS_GALLERIES.")] = None,
    repeats: int = 50,
) -> None:
    """Print the figures."""
    typer.echo(machine())
    typer.echo(f"counting of one image search: {_counting_seconds() * 1e6:.1f} us of a processor")
    with worker_with_servers() as parts:
        register_versions(parts, 8)
        with parts.database.session_scope() as session:
            for number in range(galleries):
                create_gallery(session, WantedGallery(f"gallery-{number}", "v1", "cosine", "float16", thumbnails=False))
            session.execute(
                text(
                    "INSERT INTO upgrades (gallery_id, from_generation_id, to_generation_id, legs, cutover, state,"
                    " start_revision) SELECT id, active_generation_id, active_generation_id, '[]', 'manual',"
                    " 'transforming', 0 FROM galleries"
                )
            )
            session.execute(
                text(
                    "INSERT INTO upgrade_batches (upgrade_id, phase, first_item_id, last_item_id, items, state)"
                    " SELECT u.id, 'transforming', n, n, 1, CASE WHEN n % 2 = 0 THEN 'done' ELSE 'pending' END"
                    f" FROM upgrades u, generate_series(1, {_BATCHES}) n"
                )
            )
        for count in labelled or [100, galleries]:
            _measure(parts.settings.model_copy(update={"metrics_galleries": count}), repeats)


def _measure(settings: Settings, repeats: int) -> None:
    quiet = settings.model_copy(update={"metrics_every_seconds": 3600.0, "follow_every_seconds": 3600.0})
    with TestClient(create_app(quiet), base_url="http://localhost") as client:
        parts = client.app.state.parts  # type: ignore[attr-defined]  # the client's type says any ASGI application
        while client.get("/readyz").is_error:  # galleries are being loaded
            time.sleep(0.1)
        look = _seconds(parts.figures.look, 3)
        statements = _count_statements(parts.database.engine)
        began = time.process_time()
        scrapes = _seconds(lambda: client.get("/metrics").raise_for_status(), repeats)
        of_processor = (time.process_time() - began) / repeats
        size = len(client.get("/metrics").content)
        typer.echo(
            f"{settings.metrics_galleries} galleries labelled: scrape p50 {statistics.median(scrapes) * 1e3:.1f} ms,"
            f" longest {max(scrapes) * 1e3:.1f} ms, {of_processor * 1e3:.1f} ms of a processor,"
            f" {size / 1024:.0f} KiB, {len(statements)} statements;"
            f" look {statistics.median(look) * 1e3:.0f} ms"
        )


def _count_statements(engine: Engine) -> list[str]:
    """Return a list that each statement is added to from now on."""
    statements: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", record)
    return statements


def _seconds(call: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def _counting_seconds(repeats: int = 20_000) -> float:
    """Return how long everything takes that is counted and timed of one image search, in seconds of a processor."""
    metrics = ImageQueryMetrics()
    stages = (metrics.decode_seconds, metrics.encode_seconds, metrics.index_seconds, metrics.rows_seconds)
    busy = ENCODER_BUSY.labels("cpu")
    began = time.process_time()
    for _ in range(repeats):
        for stage in stages:
            with stage.time():
                pass
        busy.inc(0.001)
        REQUESTS.labels("/v1/galleries/{name}/search", "POST", "200").inc()
        REQUEST_SECONDS.labels("/v1/galleries/{name}/search", "POST").observe(0.005)
    return (time.process_time() - began) / repeats


if __name__ == "__main__":
    typer.run(run)
