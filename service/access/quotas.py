"""How much a tenant, and each of its keys, may have and do (`service.settings.Quotas`).

Rates are counted by the broker, for all processes together; what is kept is counted from rows, before a request that
would add to it is read: requests that are made at the same time may go beyond a quota, the next one is refused. Open
upgrades are counted once more by the transaction that opens one. A quota that is not set costs nothing. Where the
broker does not answer, searches and images go on uncounted, and no training begins.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter
from sqlalchemy import text
from sqlalchemy.orm import Session

from service import identity, logs
from service.access.operations import Operation
from service.advisory_locks import AdvisoryLock, hold
from service.db import Database
from service.domain.external_state import OPEN as OPEN_EXTERNAL
from service.domain.job_state import UNFINISHED
from service.domain.upgrade_state import OPEN
from service.errors import TooManyRequests, Unavailable
from service.identity import Identity
from service.settings import Rates, Settings

_LATER_SECONDS = 60  # when something that is kept may have gone
_BROKER_SECONDS = 0.5
_ITEMS = "SELECT coalesce(sum(items), 0) FROM galleries WHERE tenant = :tenant"
_BYTES = """
SELECT coalesce(sum(pg_total_relation_size(to_regclass('embeddings_' || n.id))), 0)
FROM generations n JOIN galleries g ON g.id = n.gallery_id WHERE g.tenant = :tenant"""
_OPEN_UPGRADES = f"""
SELECT (SELECT count(*) FROM upgrades u JOIN galleries g ON g.id = u.gallery_id
        WHERE g.tenant = :tenant AND u.state IN ({", ".join(f"'{state}'" for state in sorted(OPEN))}))
     + (SELECT count(*) FROM external_upgrades
        WHERE tenant = :tenant AND state IN ({", ".join(f"'{state}'" for state in sorted(OPEN_EXTERNAL))}))"""
# What the features of a training take in memory, as `service.domain.training.paired_vectors` counts them.
_TRAINING_BYTES = f"""
SELECT coalesce(sum(4 * CAST(coalesce(j.request ->> 'rows', j.request ->> 'images') AS bigint) * (
  a.embedding_dim + b.embedding_dim + coalesce(a.side_information_dim, 0) + coalesce(b.side_information_dim, 0))), 0)
FROM jobs j
JOIN model_versions a ON a.id = CAST(j.request ->> 'from_version_id' AS bigint)
JOIN model_versions b ON b.id = CAST(j.request ->> 'to_version_id' AS bigint)
WHERE j.tenant = :tenant AND j.kind = 'transformation_training'
  AND j.state IN ({", ".join(f"'{state}'" for state in sorted(UNFINISHED))})"""
# What each operation adds to, by the name of its quota.
_ADDS_TO: dict[tuple[str, str], tuple[str, ...]] = {
    ("POST", "/v1/galleries/{name}/images"): ("items", "bytes"),
    ("POST", "/v1/galleries/{name}/images/references"): ("items", "bytes"),
    ("POST", "/v1/galleries/{name}/embeddings"): ("items", "bytes"),
    ("POST", "/v1/galleries/{name}/upgrades"): ("bytes", "open_upgrades"),
    ("POST", "/v1/external-upgrades"): ("open_upgrades",),
    ("POST", "/v1/transformations/train"): ("training_bytes",),
}
_COUNTED = {
    "items": (_ITEMS, "stored items"),
    "bytes": (_BYTES, "bytes of embeddings"),
    "open_upgrades": (_OPEN_UPGRADES, "open upgrades"),
    "training_bytes": (_TRAINING_BYTES, "bytes that trainings hold"),
}

events = logs.Events(__name__)


class QuotaExceeded(TooManyRequests):
    """The tenant or the key has had what it may have."""

    def __init__(self, message: str, retry_after_seconds: int, policy: str, limit: int) -> None:
        super().__init__(message, retry_after_seconds)
        self.headers = {
            "RateLimit-Policy": f'"{policy}";q={limit};w={retry_after_seconds}',
            "RateLimit": f'"{policy}";r=0;t={retry_after_seconds}',
        }


class QuotasUncounted(Unavailable):
    """Quotas cannot be counted, and what is asked for is not given uncounted."""


class QuotaBook:
    """The quotas of one process's requests."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database

    @cached_property
    def _limiter(self) -> SlidingWindowCounterRateLimiter:
        """What counts by the broker, whose URL is written as Celery wants it."""
        options: dict[str, Any] = {"socket_connect_timeout": _BROKER_SECONDS, "socket_timeout": _BROKER_SECONDS}
        url = (self._settings.broker_url or "").replace("redis+socket://", "redis+unix://")
        return SlidingWindowCounterRateLimiter(storage_from_string(url, wrap_exceptions=True, **options))

    def concerns(self, who: Identity, operation: Operation) -> bool:
        """Whether a quota is set that the operation is counted for."""
        quotas = self._settings.quotas_of(who.tenant)
        if operation.scope == "search":
            return quotas.searches_per_second is not None or self._settings.key_rates.searches_per_second is not None
        adds_to = _ADDS_TO.get((operation.method, operation.path), ())
        return any(getattr(quotas, name) is not None for name in adds_to)

    def admit(self, who: Identity, operation: Operation) -> None:
        """Count a search, or see whether there is room for what the operation adds to.

        Raises `QuotaExceeded` (429), and `QuotasUncounted` (503) for a training while the broker does not answer.
        """
        if operation.scope == "search":
            self._take(who, "searches", 1, lambda rates: rates.searches_per_second, RateLimitItemPerSecond)
            return
        quotas = self._settings.quotas_of(who.tenant)
        adds_to = _ADDS_TO.get((operation.method, operation.path), ())
        if "training_bytes" in adds_to and not self._is_counting():
            raise QuotasUncounted("The broker, which trainings need, does not answer; try again shortly.")
        with self._database.session_scope() as session:
            for name in adds_to:
                _check_kept(session, who.tenant, name, getattr(quotas, name))

    def take_images(self, count: int) -> None:
        """Count images that whoever is served brings. Raises `QuotaExceeded` (429)."""
        who = identity.current.get()
        self._take(who, "images", count, lambda rates: rates.images_per_minute, RateLimitItemPerMinute)

    def _take(
        self,
        who: Identity,
        what: str,
        count: int,
        limit_of: Callable[[Rates], int | None],
        item_of: type[RateLimitItem],
    ) -> None:
        # The key's first: what is refused of one is not counted for the tenant's others.
        owners = {
            "key": (who.key_id, limit_of(self._settings.key_rates)),
            "tenant": (who.tenant, limit_of(self._settings.quotas_of(who.tenant))),
        }
        for kind, (owner, limit) in owners.items():
            if owner is None or limit is None:
                continue
            item = item_of(limit)
            try:
                if self._limiter.hit(item, kind, owner, what, cost=count):
                    continue
            except StorageError as error:
                events.warning("quotas.uncounted", what=what, error=str(error.storage_error))
                return
            seconds = item.get_expiry()
            raise QuotaExceeded(
                f"The {kind} has a quota of {limit} {what} in {seconds} s, and {count} more are beyond it.",
                seconds,
                what,
                limit,
            )

    def _is_counting(self) -> bool:
        try:
            return self._limiter.storage.check()
        except StorageError:
            return False


def check_open_upgrades(session: Session, settings: Settings) -> None:
    """See, in the transaction that has just opened an upgrade, whether the tenant still had one to open: others may
    have opened theirs since `QuotaBook.admit`. Raises `QuotaExceeded` (429)."""
    tenant = identity.current.get().tenant
    quota = settings.quotas_of(tenant).open_upgrades
    if quota is not None:
        hold(session, AdvisoryLock.OPEN_UPGRADES)
        _check_kept(session, tenant, "open_upgrades", quota, own=1)


def _check_kept(session: Session, tenant: str, name: str, quota: int | None, own: int = 0) -> None:
    """Raise `QuotaExceeded` unless there is less than the quota, but for what this transaction added of its `own`."""
    if quota is None:
        return
    query, words = _COUNTED[name]
    kept = int(session.scalar(text(query), {"tenant": tenant}) or 0) - own
    if kept >= quota:
        sentence = f"The tenant has {kept} {words}, and a quota of {quota}: remove some, or ask for more."
        raise QuotaExceeded(sentence, _LATER_SECONDS, name, quota)
