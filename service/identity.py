"""Who is served: the key that a request came with, the tenant that it belongs to, and what it may do.

`current` is set for the time of a request; work that nobody asked for, such as a sweep, is done by `NOBODY`, who is
bound to no tenant. Whoever works for a tenant without a request does so within `acting_for`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

DEFAULT_TENANT = "default"
ADMIN = "admin"
EVERY_GALLERY = ("*",)


@dataclass(frozen=True)
class Actor:
    """Whose act it is: `key_id` and `name` of the key (None and "-" without one), its tenant, and the request."""

    key_id: str | None
    name: str
    tenant: str
    request_id: str


@dataclass(frozen=True)
class Identity:
    """Whoever is served: `key_id` and `name` of the key (None and "-" without one), its tenant, its scopes, and the
    patterns of which one matches the name of every gallery that it may touch (`*` and `?` stand for any characters)."""

    key_id: str | None
    name: str
    tenant: str
    scopes: frozenset[str]
    galleries: tuple[str, ...] = EVERY_GALLERY

    def may(self, scope: str) -> bool:
        """Whether it has the scope; `admin` has each."""
        return scope in self.scopes or ADMIN in self.scopes

    @property
    def is_operator(self) -> bool:
        """Whether it runs the service for all tenants: an admin of the default one."""
        return self.tenant == DEFAULT_TENANT and ADMIN in self.scopes


NOBODY = Identity(key_id=None, name="-", tenant=DEFAULT_TENANT, scopes=frozenset())
current: ContextVar[Identity] = ContextVar("identity", default=NOBODY)


@contextmanager
def acting_for(tenant: str) -> Iterator[None]:
    """See and make what is the tenant's alone, as a worker does that goes on with what one of its keys asked for."""
    token = current.set(Identity(key_id=None, name="-", tenant=tenant, scopes=frozenset()))
    try:
        yield
    finally:
        current.reset(token)
