"""The API answers as its own description says; `make fuzz` asks it at length."""

from schemathesis.python import asgi

from service.app import create_app
from service.settings import Settings
from tests.fuzzing import fill, fuzz

PHASES = {name: {"enabled": name == "fuzzing"} for name in ("examples", "coverage", "fuzzing", "stateful")}


def test_no_answer_is_a_failure_of_ours_or_one_that_is_not_described(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"cutover_wait_seconds": 0.1}))
    fill(app)

    found = fuzz(app, 1, PHASES, examples=4)
    asgi.shutdown_lifespans()

    assert not found.failures, "\n".join(f"{name}\n{text}" for name, text in found.failures.items())
    assert found.requests > 300
    assert found.answers.get(200, 0) > 0
