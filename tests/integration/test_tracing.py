"""One trace leads from a request to the batches that it caused; without a collector nothing of it is imported."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery.app.trace import trace_task
from fastapi.testclient import TestClient

from service import logs, tracing
from service.app import create_app
from service.queue import ADVANCE_UPGRADE, celery_application
from service.settings import Settings
from tests.scenario import create_upgradable_gallery, post_images, start_upgrade
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade

sdk = pytest.importorskip("opentelemetry.sdk.trace.export", reason="the extra `tracing` is not installed")
pytest.importorskip("opentelemetry.instrumentation.psycopg", reason="the extra `tracing` is not installed")
pytestmark = pytest.mark.xdist_group("tracing")  # a process has one provider

_PROGRAM = """
import sys
from service.app import create_app
from service.settings import Settings
from service.tracing import span, start_tracing

start_tracing("x")
create_app(Settings())
with span("nothing", id=1):
    pass
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.instrumentation"))))
"""


@pytest.fixture(scope="module")
def exporter() -> Iterator[Any]:
    """Have this process traced into memory for the time of these tests."""
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing.trace_into(sdk.SimpleSpanProcessor(exporter), "tests")
    yield exporter
    for instrumentor in (CeleryInstrumentor(), PsycopgInstrumentor(), HTTPXClientInstrumentor()):
        instrumentor.uninstrument()
    tracing._tracer = None
    logs._sources.clear()


@pytest.fixture
def spans(exporter: Any) -> Any:
    exporter.clear()
    return exporter


def test_one_trace_leads_from_a_request_to_its_batches(spans: Any, settings: Settings, worker: WorkerParts) -> None:
    application = celery_application(settings)
    application.control.purge()
    application.tasks.pop(ADVANCE_UPGRADE, None)  # the workers' own, where this process has imported it

    @application.task(name=ADVANCE_UPGRADE, shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    def advance(upgrade_id: int) -> None:
        advance_upgrade(worker, upgrade_id)

    with TestClient(create_app(settings)) as client:
        create_upgradable_gallery(client)
        post_images(client, range(10))
        spans.clear()
        upgrade_id = start_upgrade(client, "v2")
        # What a worker does with the message, in this thread.
        with application.connection_for_read() as connection, connection.SimpleQueue("gallery_upgrade") as queue:
            message = queue.get(timeout=5)
            message.ack()
        task = application.tasks[ADVANCE_UPGRADE]
        trace_task(task, "an-id", message.payload[0], {}, request=dict(message.headers), app=application)
    by_name = {span.name: span for span in spans.get_finished_spans()}

    request, batch = by_name["POST /v1/galleries/{name}/upgrades"], by_name["upgrade.batch"]
    assert batch.attributes["upgrade_id"] == upgrade_id
    assert batch.context.trace_id == request.context.trace_id
    of_batch = [
        span for span in spans.get_finished_spans() if span.parent and span.parent.span_id == batch.context.span_id
    ]
    assert "SELECT" in {span.name.split()[0] for span in of_batch}


def test_batches_that_no_message_asked_for_have_a_link_to_the_request(
    spans: Any, settings: Settings, worker: WorkerParts
) -> None:
    with TestClient(create_app(settings)) as client:
        create_upgradable_gallery(client)
        post_images(client, range(10))
        upgrade_id = start_upgrade(client, "v2")
    advance_upgrade(worker, upgrade_id)  # as a sweep does
    found = spans.get_finished_spans()

    (request,) = [span for span in found if span.name == "POST /v1/galleries/{name}/upgrades"]
    batches = [span for span in found if span.name == "upgrade.batch"]
    assert len(batches) == 2
    assert {span.context.trace_id for span in batches}.isdisjoint({request.context.trace_id})
    asked = (request.context.trace_id, request.context.span_id)
    assert [[(link.context.trace_id, link.context.span_id) for link in span.links] for span in batches] == [[asked]] * 2


def test_lines_of_the_log_name_their_trace(spans: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), tracing.span("here"):
        logs.Events("tests.tracing").info("x.y")
    (span,) = spans.get_finished_spans()

    assert caplog.messages == [f"x.y trace_id='{span.context.trace_id:032x}' request_id=-"]


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)

    assert ended.stdout == "[]\n"
