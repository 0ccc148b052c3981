"""What an API process says for Prometheus: at `/metrics`, and on a port of its own where one is set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest, start_http_server

from service import logs
from service.api.dependencies import Parts

events = logs.Events(__name__)


def metrics_text(parts: Parts) -> bytes:
    """Return all metrics of this process, in the text format: of its own work, and what was last found in rows."""
    registries = (REGISTRY, parts.image_query_metrics.registry)
    return b"".join([*map(generate_latest, registries), parts.figures.text().encode()])


@contextmanager
def metrics_port(parts: Parts) -> Iterator[None]:
    """Serve the metrics of this process, and of no other, at every path of the port that is set, if any; the API works
    without where it is taken."""
    host, port = parts.settings.api_metrics_host, parts.settings.api_metrics_port
    if port is None:
        yield
        return

    def answer(_environ: object, start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [metrics_text(parts)]

    try:
        server, thread = start_http_server(port, host)
        server.set_app(answer)
    except OSError as error:
        events.warning("api.metrics_not_served", host=host, port=port, reason=str(error))
        yield
        return
    events.info("api.metrics_served", host=host, port=port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
