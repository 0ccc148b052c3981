"""The API answers as its own description says; `make fuzz` asks it at length."""

from pathlib import Path

from schemathesis.python import asgi

from service.app import create_app
from service.queue import celery_application
from service.settings import Settings
from tests.fuzzing import fill, fuzz, fuzz_with_keys
from tests.tenants import settings_of_tenants
from workers.app import make_worker_parts

PHASES = {name: {"enabled": name == "fuzzing"} for name in ("examples", "coverage", "fuzzing", "stateful")}


def test_no_answer_is_a_failure_of_ours_or_one_that_is_not_described(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"cutover_wait_seconds": 0.1}))
    fill(app)

    found = fuzz(app, 1, PHASES, examples=4)
    asgi.shutdown_lifespans()

    assert not found.failures, "\n".join(f"{name}\n{text}" for name, text in found.failures.items())
    assert found.requests > 300
    assert found.answers.get(200, 0) > 0


def test_no_key_is_given_a_failure_or_what_is_another_tenants(settings: Settings, tmp_path: Path) -> None:
    settings = settings_of_tenants(settings.model_copy(update={"cutover_wait_seconds": 0.1}), tmp_path)
    worker = make_worker_parts(settings, celery_application(settings))

    of_scopes = fuzz_with_keys(worker, tmp_path, 1, PHASES, 1, ["read", "admin"])
    worker.database.engine.dispose()

    for scope, found in of_scopes.items():
        assert not found.failures, "\n".join(f"{scope}: {name}\n{text}" for name, text in found.failures.items())
        assert found.of_another > 20
        assert found.answers[200] > 0
    assert of_scopes["read"].answers[403] > of_scopes["admin"].answers.get(403, 0)
