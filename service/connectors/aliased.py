"""What stores have in common whose new side is another collection, and whose users search by an alias.

`ALIAS_NAME` is the new collection; the alias `ALIAS_before_NAME` keeps the old one from `prepare` on, so that it is
known whatever the other alias points at. Such stores do not notice writes.
"""

from abc import ABC, abstractmethod

from service.connectors.store import NewSide, StoreRefused, Transform, needed

NO_ALIAS = (
    "is a collection's own name: make an alias of it, let the application use that, and name it here, so that one"
    " request can switch what is searched."
)


class AliasedStore(ABC):
    """The half of a `service.connectors.store.ExternalStore` that concerns which collection is searched."""

    def __init__(self, alias: str, new: NewSide | None) -> None:
        self._alias = alias
        self._new = new

    @abstractmethod
    def _pointed_at(self, alias: str) -> str | None:
        """Return the collection that an alias stands for."""

    @abstractmethod
    def _point(self, alias: str, collection: str) -> None:
        """Let an alias stand for a collection, by one request, whether it stood for another or not."""

    @abstractmethod
    def _remove(self, collection: str) -> None:
        """Remove a collection, if it is there."""

    @abstractmethod
    def _unalias(self, alias: str) -> None:
        """Remove an alias, if it is there."""

    @abstractmethod
    def _has(self, collection: str) -> bool:
        """Return whether a collection is there."""

    def changed_keys(self, limit: int) -> list[str]:  # noqa: ARG002 - the protocol's
        return []

    def settle(self, transform: Transform, limit: int) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def index(self) -> None:
        """Do nothing: collections are indexed while they are written."""
        needed(self._new)

    def switch(self, transform: Transform) -> None:  # noqa: ARG002 - the protocol's
        if self.is_switched():
            return
        if not self._has(self._target):
            raise StoreRefused("There is no new side: prepare it first.")
        self._point(self._alias, self._target)

    def switch_back(self, *, forget_written: bool = False) -> None:  # noqa: ARG002 - the protocol's
        old = self._pointed_at(self._before)
        if self.is_switched() and old is not None:
            self._point(self._alias, old)

    def is_switched(self) -> bool:
        return self._pointed_at(self._alias) == self._target

    def drop_new(self) -> None:
        if self.is_switched():
            raise StoreRefused("Searches see the new side: switch back before it is dropped.")
        self._remove(self._target)
        self._unalias(self._before)

    def drop_old(self) -> None:
        if not self.is_switched() and self._has(self._target):
            raise StoreRefused("Searches see the old side: switch before it is dropped.")
        old = self._pointed_at(self._before)
        if old is not None:
            self._unalias(self._before)
            self._remove(old)

    @property
    def _target(self) -> str:
        """The new collection."""
        return f"{self._alias}_{needed(self._new).name}"

    @property
    def _before(self) -> str:
        """The alias of the old collection."""
        return f"{self._alias}_before_{needed(self._new).name}"

    @property
    def _old(self) -> str:
        """The old collection."""
        kept = self._pointed_at(self._before) if self._new is not None else None
        return kept or self._pointed_at(self._alias) or self._alias

    def _refuse_switched(self) -> None:
        if self.is_switched():
            raise StoreRefused("Searches see the new side: it is written by the store's users, and no more from here.")

    def _keep_old(self) -> None:
        """Let the second alias keep the old collection. Raises `StoreRefused` where the first one is none."""
        old = self._pointed_at(self._alias)
        if old is None:
            raise StoreRefused(f"{self._alias!r} {NO_ALIAS}")
        if self._pointed_at(self._before) is None:
            self._point(self._before, old)

    def _warning(self) -> str | None:
        return f"{self._alias!r} {NO_ALIAS}" if self._pointed_at(self._alias) is None else None
