"""What an API process says for Prometheus: at `/metrics`, and on a port of its own where one is set."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from service import logs
from service.api.dependencies import Parts

events = logs.Events(__name__)


def registry_of(parts: Parts) -> CollectorRegistry:
    """Return all metrics of this process: of its own work, and what was last found in rows."""
    registry = CollectorRegistry()
    for part in (REGISTRY, parts.image_query_metrics.registry, parts.figures):
        registry.register(part)
    return registry


@contextmanager
def metrics_port(parts: Parts) -> Iterator[None]:
    """Serve the metrics of this process, and of no other, at every path of the port that is set, if any; the API works
    without where it is taken."""
    host, port = parts.settings.api_metrics_host, parts.settings.api_metrics_port
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, host, registry_of(parts))
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
