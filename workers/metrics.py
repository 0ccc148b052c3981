"""A worker's own metrics over HTTP: one process runs its tasks (`--pool solo`), so its registry has all of them."""

from celery.signals import worker_ready
from prometheus_client import start_http_server

from service import logs
from service.settings import Settings
from workers.app import settings as settings_of_worker

events = logs.Events(__name__)


def serve_metrics(settings: Settings) -> int | None:
    """Serve the metrics of this process at every path of a port, and return the port; None where none is set, or where
    it is taken: a worker works without."""
    if settings.worker_metrics_port is None:
        return None
    host, port = settings.worker_metrics_host, settings.worker_metrics_port
    try:
        server, _ = start_http_server(port, host)
    except OSError as error:
        events.warning("worker.metrics_not_served", host=host, port=port, reason=str(error))
        return None
    events.info("worker.metrics_served", host=host, port=server.server_port)
    return int(server.server_port)


@worker_ready.connect
def _start(**_: object) -> None:
    serve_metrics(settings_of_worker)
