"""What is done about a call until it is answered, without a clock that runs and without a network."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gallery_upgrade.api import requests
from gallery_upgrade.core.calls import Call
from gallery_upgrade.core.exchange import Lost, Pause, Received, Retries, Send, exchange
from gallery_upgrade.errors import Conflict, NotTheService, ServiceAway, TooManyRequests, Unavailable

CREATE = requests.create_gallery(name="g", model_version="v1")
OK = Received(201, {}, b"{}")
LOST = Lost(ConnectionError("reset"))


def problem(status: int, kind: str = "about:blank", **headers: str) -> Received:
    body = {"type": kind, "title": "?", "status": status, "detail": f"It is {status}."}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Received(status, {"content-type": "application/problem+json", **headers}, json.dumps(body).encode())


def carried_out(call: Call[Any], answers: Iterator[Received | Lost], deadline_seconds: float = 100.0) -> list[float]:
    """Carry a call out with these answers; return the pauses. Time passes in pauses alone."""
    now = 0.0
    pauses: list[float] = []
    steps = exchange(call, Retries(deadline_seconds=deadline_seconds), clock=lambda: now)
    came: Received | Lost | None = None
    while True:
        try:
            step = steps.send(came)
        except StopIteration:
            return pauses
        if isinstance(step, Pause):
            pauses.append(step.seconds)
            now += step.seconds
            came = None
        else:
            assert isinstance(step, Send)
            came = next(answers)


@pytest.mark.parametrize("passing", [LOST, problem(429), problem(502), problem(503), problem(504)], ids=str)
def test_what_may_pass_is_tried_again(passing: Received | Lost) -> None:
    pauses = carried_out(CREATE, iter([passing, passing, OK]))

    assert len(pauses) == 2


def test_a_request_whose_first_try_still_runs_is_asked_for_again() -> None:
    still_runs = problem(409, "urn:gallery-upgrade:request-still-runs")

    assert len(carried_out(CREATE, iter([LOST, still_runs, OK]))) == 2


@pytest.mark.parametrize("refusal", [problem(409), problem(404), problem(422), problem(500)], ids=str)
def test_what_will_not_pass_is_raised_at_once(refusal: Received) -> None:
    with pytest.raises(Exception, match=f"It is {refusal.status}") as raised:
        carried_out(CREATE, iter([refusal]))

    assert raised.value.status == refusal.status  # type: ignore[attr-defined]


def test_what_would_get_no_answer_later_is_tried_once() -> None:
    with pytest.raises(NotTheService, match="no TLS"):
        carried_out(CREATE, iter([Lost(ConnectionError("no TLS"), is_lasting=True)]))


def test_retry_after_is_kept_to_with_jitter_on_top() -> None:
    (pause,) = carried_out(CREATE, iter([problem(429, retry_after="7"), OK]))

    assert 7.0 <= pause <= 7.0 + Retries().base_seconds


def test_pauses_are_drawn_from_nought_to_twice_as_much_each_time_up_to_a_bound() -> None:
    retries = Retries(base_seconds=0.5, most_seconds=3.0)

    assert [retries.pause(tries, 0.0, draw=lambda: 1.0) for tries in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert retries.pause(4, 0.0, draw=lambda: 0.0) == 0.0


@pytest.mark.parametrize(
    ("answer", "error"), [(LOST, ServiceAway), (problem(503), Unavailable), (problem(429), TooManyRequests)], ids=str
)
def test_no_try_begins_after_the_deadline(answer: Received | Lost, error: type[Exception]) -> None:
    tries = []

    def always() -> Iterator[Received | Lost]:
        while True:
            tries.append(answer)
            yield answer

    with pytest.raises(error):
        carried_out(CREATE, always(), deadline_seconds=5.0)

    assert 1 < len(tries) < 40
    with pytest.raises(TooManyRequests):
        carried_out(CREATE, iter([problem(429, retry_after="6")]), deadline_seconds=5.0)


def test_what_is_gone_after_a_lost_answer_the_first_try_deleted() -> None:
    delete = requests.delete_gallery(name="g")

    assert len(carried_out(delete, iter([LOST, problem(404)]))) == 1
    with pytest.raises(Exception, match="It is 404"):
        carried_out(delete, iter([problem(404)]))
    with pytest.raises(Conflict):
        carried_out(delete, iter([LOST, problem(409)]))
