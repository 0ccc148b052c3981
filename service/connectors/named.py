"""The stores that an operator names: requests say a store by its name alone, so that nobody makes the service connect
anywhere else, and no password is in a row, an answer or a log."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from service import identity
from service.connectors.store import ExternalStore, NewSide, StoreAway, StoreRefused
from service.errors import NotFound
from service.identity import NOBODY
from service.settings import StoreSetting

OpenStore = Callable[[str, NewSide | None], ExternalStore]


class UnknownStore(NotFound):
    """No store has this name, or it is another tenant's."""


class NamedStores:
    """The stores of one process's settings."""

    def __init__(self, stores: Mapping[str, StoreSetting], open_store: OpenStore) -> None:
        self._stores = stores
        self._open_store = open_store

    def names(self) -> list[str]:
        """Return the stores that whoever is served may upgrade."""
        return sorted(name for name, store in self._stores.items() if _may_see(store))

    @contextmanager
    def opened(self, name: str, new: NewSide | None = None) -> Iterator[ExternalStore]:
        """Open a store for a while, to be upgraded to `new` if that is given.

        Raises `UnknownStore` (404), and `StoreAway` and `StoreRefused`, here and while it is asked, without its URL.
        """
        store = self._stores.get(name)
        if store is None or not _may_see(store):
            raise UnknownStore(f"There is no store {name!r}: an operator names stores in GALLERY_STORES.")
        try:
            found = self._open_store(store.url, new)
            try:
                yield found
            finally:
                found.close()
        except (StoreAway, StoreRefused) as error:
            raise type(error)(_without_secrets(error.message, store.url, name)) from None


def _may_see(store: StoreSetting) -> bool:
    who = identity.current.get()
    return who is NOBODY or who.tenant in store.tenants


def _without_secrets(message: str, url: str, name: str) -> str:
    """Return a driver's message without the URL, and without a password or key that the URL has."""
    found = message.replace(url, name)
    parts = urlsplit(url)
    secrets = {parts.password or "", unquote(parts.password or ""), parts.query}
    secrets |= {value.partition("=")[2] for value in parts.query.split("&") if "key" in value or "password" in value}
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        found = found.replace(secret, "***")
    return found
