"""One API process: the server that its application runs in, alone on a port or beside others."""

import gc
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from service import crash_points
from service.api.dependencies import Parts
from service.api.wire import WireLimits, connections_within_descriptors, limited_protocol
from service.app import create_app, make_parts, serve_at_once
from service.embedded.addresses import Address
from service.embedded.gates import wait_at_gate
from service.settings import Settings
from service.tracing import start_tracing

# How long requests that run, event streams among them, keep the API from stopping.
_SHUTDOWN_SECONDS = 10


def run_api(settings: Settings, address: Address) -> None:
    """Serve an address until SIGINT or SIGTERM."""
    _run(
        settings,
        serve_at_once,
        None,
        host=address.host,
        port=address.port,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.certificate_key,
    )


def run_one_of_several(
    settings: Settings, number: int, gate: int, listeners: Sequence[int], certificate: tuple[Path | None, Path | None]
) -> None:
    """Serve what comes over sockets that are bound, given by their descriptors, until SIGINT or SIGTERM; once loaded,
    and let in at the gate. The `number`, from 0, says on which port its metrics are."""
    if settings.api_metrics_port is not None:
        settings = settings.model_copy(update={"api_metrics_port": settings.api_metrics_port + number})

    def before_serving(parts: Parts) -> None:
        wait_at_gate(gate, lambda: parts.replicas.has_tried and parts.drift.has_looked)

    sockets = [socket.socket(fileno=descriptor) for descriptor in listeners]
    _run(settings, before_serving, sockets, ssl_certfile=certificate[0], ssl_keyfile=certificate[1])


def keep_what_is_there() -> None:
    """Have the search for cycles of garbage pass over what there is by now, and begin after 10,000 new objects, not
    after 700: requests that run at the same time have some thousands, and to look through all that was ever imported
    took a third of their processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def _run(
    settings: Settings, before_serving: Callable[[Parts], None], sockets: list[socket.socket] | None, **where: Any
) -> None:
    start_tracing("gallery-upgrade-api")
    crash_points.arm(settings.crash_at)
    limits = WireLimits(
        connections_within_descriptors(settings.max_connections), settings.header_seconds, settings.body_seconds
    )

    def settled(parts: Parts) -> None:
        before_serving(parts)
        keep_what_is_there()

    config = uvicorn.Config(
        create_app(settings, make_parts, settled),
        http=limited_protocol(limits),
        ws="none",
        proxy_headers=False,  # `service.app` reads them
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        timeout_keep_alive=settings.keep_alive_seconds,
        **where,
    )
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        server.run(sockets)
    if not server.started:
        sys.exit(1)
