"""The table of docs/operations/metrics.md, from the metrics themselves."""

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from service.domain.figures import FIGURES
from service.networks.micro_batching import ImageQueryMetrics

_SUFFIXES = {"counter": "_total", "info": "_info"}


def metrics_table() -> str:
    """Return a Markdown table of every metric of ours: its name, type, labels and meaning."""
    rows = [*_of(REGISTRY), *_of(ImageQueryMetrics().registry)]
    rows += [(figure.name, "gauge", figure.labels, figure.meaning) for figure in FIGURES]
    lines = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"
        for name, kind, labels, meaning in sorted(rows)
    ]
    return "\n".join(["| name | type | labels | meaning |", "|---|---|---|---|", *lines])


def _of(registry: CollectorRegistry) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    # The library has no public list of what a registry's metrics are called before they have a value.
    for metric in registry._collector_to_names:
        if isinstance(metric, MetricWrapperBase):
            kind = metric._type or "untyped"
            yield metric._name + _SUFFIXES.get(kind, ""), kind, tuple(metric._labelnames), metric._documentation
