"""A stream is sent for as long as its key is valid."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from service.access.known_keys import UnknownKey
from service.api import access
from service.app import create_app
from service.identity import Identity
from service.settings import Settings

SEARCHER = Identity("k", "a key", "t", frozenset(["read"]))


class KeysThatEnd:
    """Knows each key for some looks, and never again."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    def remembered(self, token: str) -> Identity | None:
        return None

    def look_up(self, token: str) -> Identity:
        if self._left == 0:
            raise UnknownKey("Key k was revoked.")
        self._left -= 1
        return SEARCHER


class Parts:
    def __init__(self, keys: KeysThatEnd) -> None:
        self.keys = keys
        self.quotas = NoQuotas()


class NoQuotas:
    def concerns(self, who: Identity, operation: object) -> bool:
        return False


async def endless(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"more", "more_body": True})


def test_an_answer_that_outlives_its_key_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "REMEMBERED_SECONDS", -1.0)
    app = create_app(Settings())
    app.state.parts = Parts(KeysThatEnd(4))  # one to begin, three while it is sent
    scope = {"type": "http", "method": "GET", "path": "/v1/jobs/1/events", "query_string": b"", "app": app}
    scope["headers"] = [(b"api-key", b"gu_00000000_" + b"s" * 43)]
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    with pytest.raises(access.AccessEnded, match="revoked"):
        asyncio.run(access.AccessMiddleware(endless, needs_key=True)(scope, receive, send))

    assert [message.get("more_body") for message in sent] == [None, True, True, True]
