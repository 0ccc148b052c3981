"""Services that need keys, and keys for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings

ADMIN_KEY = f"gu_operatr1_{'s' * 43}"


def guarded(settings: Settings, **changes: Any) -> Settings:
    """Return settings of a service that needs keys and has `ADMIN_KEY`."""
    return settings.model_copy(update={"auth": "on", "admin_key": ADMIN_KEY, **changes})


@contextmanager
def guarded_client(settings: Settings, **changes: Any) -> Iterator[TestClient]:
    """Give a client, without a key, of such a service."""
    with TestClient(create_app(guarded(settings, **changes)), raise_server_exceptions=False) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    """Return the header that shows a key."""
    return {"Authorization": f"Bearer {key}"}


def make_key(client: TestClient, *scopes: str, **wanted: Any) -> dict[str, Any]:
    """Have the operator make a key of these scopes, and return the answer."""
    made = client.post("/v1/keys", json={"name": "of a test", "scopes": scopes, **wanted}, headers=bearer(ADMIN_KEY))
    assert made.status_code == 201, made.text
    answer: dict[str, Any] = made.json()
    return answer
