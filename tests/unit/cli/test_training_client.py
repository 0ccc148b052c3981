"""The client of trainings against a service that answers what a test says, over real HTTP."""

import json
from collections.abc import Callable, Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from service.cli.training_client import TrainingFailed, ask_for_training, follow_training
from tests.served import free_port

WANTED = {"from_version": "v1", "to_version": "v2", "with_g": True, "options": {"epochs": 3}}
PROGRESS = {"training_h": {"done": 0, "total": 40}, "evaluating": {"done": 0, "total": 0}}


class ScriptedService:
    """Gives its answers (status, body) one after another, the last one again and again, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def will_answer(self, status: int, body: Any) -> None:
        self.answers.append((status, body if isinstance(body, bytes) else json.dumps(body).encode()))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(service) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                service.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                status, answer = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET  # noqa: N815 - named by http.server

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


def job(state: str, **fields: Any) -> dict[str, Any]:
    return {"id": 5, "state": state, "progress": PROGRESS, "result": None, "error": None, **fields}


def test_a_request_without_pairs_is_json_with_a_key_of_its_own(service: ScriptedService) -> None:
    service.will_answer(202, {"id": 5})

    job_ids = [ask_for_training(service.url, WANTED, None) for _ in range(2)]

    (path, headers, body), (_, other, _) = service.asked
    assert job_ids == [5, 5]
    assert (path, json.loads(body)) == ("/v1/transformations/train", WANTED)
    assert headers["content-type"] == "application/json"
    assert headers["idempotency-key"] != other["idempotency-key"]


def test_pairs_are_sent_as_a_form_whose_fields_are_text_or_json(service: ScriptedService, tmp_path: Path) -> None:
    service.will_answer(202, {"id": 5})
    pairs = tmp_path / "pairs.parquet"
    pairs.write_bytes(b"PAR1 rows PAR1")

    ask_for_training(service.url, WANTED, pairs)

    ((_, headers, body),) = service.asked
    form = message_from_bytes(f"content-type: {headers['content-type']}\r\n\r\n".encode() + body)
    assert form.get_content_type() == "multipart/form-data"
    parts = {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in form.walk()
    }
    assert {name: value for name, value in parts.items() if name is not None} == {
        "from_version": b"v1",
        "to_version": b"v2",
        "with_g": b"true",
        "options": b'{"epochs": 3}',
        "pairs": b"PAR1 rows PAR1",
    }


def test_a_training_is_followed_over_an_outage_to_its_transformation(service: ScriptedService) -> None:
    service.will_answer(200, job("queued"))
    service.will_answer(503, {"detail": "The database does not answer; try again shortly."})
    service.will_answer(200, job("succeeded", result={"transformation": 9}))
    service.will_answer(200, {"id": 9, "metrics": {}})

    transformation = follow_training(service.url, 5)

    assert transformation == {"id": 9, "metrics": {}}
    assert [path for path, _, _ in service.asked] == ["/v1/jobs/5"] * 3 + ["/v1/transformations/9"]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (job("failed", error="What was learned is not finite."), "Job 5 is failed. What was learned is not finite."),
        (job("cancelled"), "Job 5 is cancelled."),
    ],
)
def test_a_training_that_ended_otherwise_is_told_by_its_state_and_reason(
    service: ScriptedService, answer: dict[str, Any], sentence: str
) -> None:
    service.will_answer(200, answer)

    with pytest.raises(TrainingFailed) as failed:
        follow_training(service.url, 5)

    assert str(failed.value) == sentence


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (422, {"detail": "there is no g to v3"}, "there is no g to v3"),
        (500, {"title": "?"}, '{"title": "?"}'),
        (200, b"<html>", "is not this service: 200"),
        (404, b"nothing here", "is not this service: 404"),
    ],
)
@pytest.mark.parametrize(
    "ask",
    [lambda url: ask_for_training(url, WANTED, None), lambda url: follow_training(url, 5)],
    ids=["asking", "following"],
)
def test_what_is_refused_or_no_answer_of_the_service_is_told(
    service: ScriptedService, status: int, body: Any, sentence: str, ask: Callable[[str], object]
) -> None:
    service.will_answer(status, body)

    with pytest.raises(TrainingFailed) as failed:
        ask(service.url)

    assert sentence in str(failed.value)


def test_a_service_that_is_not_there_is_named_and_not_waited_for_when_a_training_is_asked_for() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    with pytest.raises(TrainingFailed, match=f"{url} does not answer"):
        ask_for_training(url, WANTED, None)
