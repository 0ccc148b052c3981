"""What a process counts of its own work for Prometheus, in the library's registry of the process.

What is known of rows is in `service.domain.figures`, and what image queries wait for in
`service.networks.micro_batching`. docs/operations/metrics.md lists all of them; it is printed by
`gallery-upgrade metrics`.
"""

import platform
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import Counter, Gauge, Histogram, Info

# Of a search in a small gallery to a query that waits for its turn.
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
# Of an upgrade's batch, which is committed as one.
_BATCH_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)

NO_HANDLER = "none"

BUILD = Info("gallery_build", "The version of gallery-upgrade, and of the Python that runs it")
REQUESTS = Counter(
    "http_requests",
    f"Requests that were answered, by the route's template; {NO_HANDLER!r} where no route took the request: an unknown"
    " path, or one that was refused before",
    ["handler", "method", "status"],
)
REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "From a request's first byte of headers to the last byte of its answer; a stream of events lasts long",
    ["handler", "method"],
    buckets=SECONDS,
)
INGESTED = Counter(
    "gallery_ingested_items",
    "Items that this process stored or rejected: of images, or imported as vectors",
    ["source", "outcome"],
)
ENCODER_BUSY = Counter(
    "gallery_encoder_busy_seconds",
    "Time in which φ or ψ ran: its rate is the share of time that the device is busy, or how many run at once",
    ["device"],
)
UPGRADE_ROWS = Counter(
    "gallery_upgrade_rows",
    "Rows that this worker wrote into next generations, those of batches that were undone among them",
)
UPGRADE_BATCH_SECONDS = Histogram(
    "gallery_upgrade_batch_seconds",
    "What batches of upgrades take in this worker: reading, h and g with the wait for a turn or smoothing, writing",
    ["stage"],
    buckets=_BATCH_SECONDS,
)
SWEEP_AGE = Gauge("gallery_worker_sweep_age_seconds", "How long ago this worker's sweep last came to its end")


def name_build() -> None:
    """Say once per process which build runs."""
    try:
        installed = version("gallery-upgrade")
    except PackageNotFoundError:  # run from a checkout that is not installed
        installed = "unknown"
    BUILD.info({"version": installed, "python": platform.python_version()})


name_build()
