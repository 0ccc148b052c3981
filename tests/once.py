"""What every test would make anew for its own application, and what is the same for all of them: made once per process.

It is more than half of the time that a test over HTTP would take.
"""

from collections.abc import Mapping
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.util import LRUCache

import service.app
from models import artifacts
from models.confined_networks import Confinement
from models.onnx_sessions import Session
from service.networks import confinement

if TYPE_CHECKING:
    from starlette.routing import BaseRoute


def prepare_once() -> None:
    """Share routes, compiled statements and loaded networks among all that this process makes from here on."""
    _share_routes()
    _share_statements()
    # What a file of weights becomes depends on nothing else; nothing changes a network that was loaded.
    artifacts.load_own = lru_cache(64)(artifacts.load_own)  # type: ignore[attr-defined]  # imported there
    confinement.Confinement = _SharedConfinement  # type: ignore[attr-defined]  # imported there


class _SharedConfinement(Confinement):
    """Lets an ONNX network have one child process, whichever applications of this process run it."""

    def open(self, data: bytes, weights: Mapping[str, bytes], device: str) -> Session:
        return _opened(self, data, tuple(sorted(weights.items())), device)


@lru_cache(16)
def _opened(self: Confinement, data: bytes, weights: tuple[tuple[str, bytes], ...], device: str) -> Session:
    return Confinement.open(self, data, dict(weights), device)


def _share_routes() -> None:
    """Give every application of a process the routes of the first one that is made: they are the same, and FastAPI
    compiles them at the first request, which takes longer than most tests."""
    known: list[BaseRoute] = []
    make = service.app.create_app

    @wraps(make)
    def create_app(*arguments: Any, **options: Any) -> FastAPI:
        app = make(*arguments, **options)
        if not known:
            known.extend(app.router.routes)
        assert [type(route) for route in app.router.routes] == [type(route) for route in known]
        app.router.routes[:] = known
        return app

    service.app.create_app = create_app


def _share_statements() -> None:
    """Let the engines of all tests share the statements that SQLAlchemy compiled: each test has an engine, and writing
    its statements down anew would be a quarter of the time of all tests."""
    compiled: LRUCache[Any, Any] = LRUCache(2_000)
    make = Engine.__init__

    def make_sharing(self: Engine, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self._compiled_cache = compiled

    # Statements are kept by dialect, and all dialects here speak to one server.
    Engine.__init__ = make_sharing  # type: ignore[method-assign]
    PGDialect_psycopg.__eq__ = lambda self, other: type(self) is type(other)  # type: ignore[method-assign]
    PGDialect_psycopg.__hash__ = lambda self: hash(type(self))  # type: ignore[method-assign]
