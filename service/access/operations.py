"""Which scope each operation of the API needs: one literal table, which a test compares with the routes there are.

What is not in the table is not there for anyone but an `admin`. What a body may ask for beyond its operation (going
live past gates that failed) is asked of `require` by the endpoint that has read it.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from service import identity
from service.errors import Forbidden, NotFound
from service.identity import ADMIN, Identity

Scope = Literal["search", "read", "write", "upgrade", "cutover", "override", "models", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_GALLERY = "/v1/galleries/{name}"
_QUERY_SETS = "/v1/galleries/{gallery}/query-sets"
_UPGRADE = "/v1/upgrades/{upgrade_id}"
_BACKFILL = "/v1/backfills/{backfill_id}"
_EXTERNAL = "/v1/external-upgrades/{external_id}"
_JOB = "/v1/jobs/{job_id}"
_VERSION = "/v1/model-versions/{name}"
_TRANSFORMATION = "/v1/transformations/{transformation_id}"

# What needs no scope: pages and answers that tell nothing of what is kept, and how a browser shows a key.
PUBLIC = frozenset(
    {
        ("GET", "/console/login"),
        ("GET", "/console/styleguide"),
        ("GET", "/console/assets/{digest}/{name}"),
        ("GET", "/docs"),
        ("GET", "/docs/swagger-ui-bundle.js"),
        ("GET", "/docs/swagger-ui.css"),
        ("GET", "/openapi.json"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/v1/signing-key"),
        ("POST", "/v1/session"),
        ("DELETE", "/v1/session"),
    }
)

# What any key may do: ask who it is.
ANY_KEY = frozenset({("GET", "/v1/session")})

SCOPE_OF: dict[tuple[str, str], Scope] = {
    ("GET", "/metrics"): "metrics",
    # Galleries and what is in them.
    ("GET", "/v1/galleries"): "read",
    ("POST", "/v1/galleries"): "write",
    ("GET", _GALLERY): "read",
    ("PATCH", _GALLERY): "write",
    ("DELETE", _GALLERY): "write",
    ("GET", f"{_GALLERY}/embeddings"): "read",
    ("POST", f"{_GALLERY}/embeddings"): "write",
    ("POST", f"{_GALLERY}/images"): "write",
    ("POST", f"{_GALLERY}/images/references"): "write",
    ("GET", f"{_GALLERY}/items"): "read",
    ("POST", f"{_GALLERY}/items/delete"): "write",
    ("GET", f"{_GALLERY}/items/{{item_id}}"): "read",
    ("PATCH", f"{_GALLERY}/items/{{item_id}}"): "write",
    ("DELETE", f"{_GALLERY}/items/{{item_id}}"): "write",
    ("GET", f"{_GALLERY}/items/{{item_id}}/thumbnail"): "read",
    ("GET", f"{_GALLERY}/quality"): "read",
    ("POST", f"{_GALLERY}/search"): "search",
    ("POST", f"{_GALLERY}/search/items"): "search",
    ("POST", f"{_GALLERY}/search/vectors"): "search",
    ("GET", _QUERY_SETS): "read",
    ("POST", _QUERY_SETS): "write",
    ("GET", f"{_QUERY_SETS}/{{name}}"): "read",
    ("DELETE", f"{_QUERY_SETS}/{{name}}"): "write",
    # Upgrades and backfills.
    ("GET", f"{_GALLERY}/upgrades"): "read",
    ("POST", f"{_GALLERY}/upgrades"): "upgrade",
    ("GET", "/v1/upgrades"): "read",
    ("GET", _UPGRADE): "read",
    ("PATCH", _UPGRADE): "upgrade",
    ("GET", f"{_UPGRADE}/events"): "read",
    ("POST", f"{_UPGRADE}/pause"): "upgrade",
    ("POST", f"{_UPGRADE}/resume"): "upgrade",
    ("POST", f"{_UPGRADE}/retry"): "upgrade",
    ("POST", f"{_UPGRADE}/cancel"): "upgrade",
    ("POST", f"{_UPGRADE}/evaluate"): "upgrade",
    ("GET", f"{_UPGRADE}/references"): "read",
    ("POST", f"{_UPGRADE}/references"): "upgrade",
    ("POST", f"{_UPGRADE}/references/vectors"): "upgrade",
    ("GET", f"{_UPGRADE}/report"): "read",
    ("GET", f"{_UPGRADE}/report/examples"): "read",
    ("GET", f"{_UPGRADE}/reports"): "read",
    ("GET", f"{_UPGRADE}/reports/{{number}}"): "read",
    ("GET", f"{_UPGRADE}/record"): "read",
    ("GET", f"{_UPGRADE}/votes"): "read",
    ("POST", f"{_UPGRADE}/votes"): "write",
    ("POST", f"{_UPGRADE}/cutover"): "cutover",
    ("POST", f"{_UPGRADE}/rollback"): "cutover",
    ("POST", f"{_UPGRADE}/finalize"): "override",
    ("GET", f"{_GALLERY}/backfills"): "read",
    ("POST", f"{_GALLERY}/backfills"): "upgrade",
    ("GET", _BACKFILL): "read",
    ("PATCH", _BACKFILL): "upgrade",
    ("GET", f"{_BACKFILL}/events"): "read",
    ("GET", f"{_BACKFILL}/refused"): "read",
    ("POST", f"{_BACKFILL}/images"): "upgrade",
    ("POST", f"{_BACKFILL}/lease"): "upgrade",
    ("POST", f"{_BACKFILL}/pause"): "upgrade",
    ("POST", f"{_BACKFILL}/resume"): "upgrade",
    ("POST", f"{_BACKFILL}/retry"): "upgrade",
    ("POST", f"{_BACKFILL}/cancel"): "upgrade",
    # Galleries in other stores.
    ("GET", "/v1/stores"): "read",
    ("GET", "/v1/external-upgrades"): "read",
    ("POST", "/v1/external-upgrades"): "upgrade",
    ("GET", _EXTERNAL): "read",
    ("PATCH", _EXTERNAL): "upgrade",
    ("GET", f"{_EXTERNAL}/events"): "read",
    ("POST", f"{_EXTERNAL}/pause"): "upgrade",
    ("POST", f"{_EXTERNAL}/resume"): "upgrade",
    ("POST", f"{_EXTERNAL}/retry"): "upgrade",
    ("POST", f"{_EXTERNAL}/cancel"): "upgrade",
    ("POST", f"{_EXTERNAL}/evaluate"): "upgrade",
    ("GET", f"{_EXTERNAL}/references"): "read",
    ("POST", f"{_EXTERNAL}/references"): "upgrade",
    ("GET", f"{_EXTERNAL}/report"): "read",
    ("POST", f"{_EXTERNAL}/cutover"): "cutover",
    ("POST", f"{_EXTERNAL}/rollback"): "cutover",
    ("POST", f"{_EXTERNAL}/finalize"): "override",
    # Jobs.
    ("GET", "/v1/jobs"): "read",
    ("GET", _JOB): "read",
    ("PATCH", _JOB): "write",
    ("GET", f"{_JOB}/events"): "read",
    ("GET", f"{_JOB}/rejected"): "read",
    ("POST", f"{_JOB}/pause"): "write",
    ("POST", f"{_JOB}/resume"): "write",
    ("POST", f"{_JOB}/cancel"): "write",
    # Networks: registering one is running code of a user's, and training one is the device's time.
    ("GET", "/v1/model-versions"): "read",
    ("POST", "/v1/model-versions"): "models",
    ("PUT", f"{_VERSION}/networks"): "models",
    ("GET", _VERSION): "read",
    ("DELETE", _VERSION): "models",
    ("GET", f"{_VERSION}/artifacts/{{part}}"): "read",
    ("GET", "/v1/transformations"): "read",
    ("POST", "/v1/transformations"): "models",
    ("POST", "/v1/transformations/train"): "models",
    ("GET", _TRANSFORMATION): "read",
    ("PATCH", _TRANSFORMATION): "models",
    ("DELETE", _TRANSFORMATION): "models",
    ("GET", f"{_TRANSFORMATION}/artifacts/{{part}}"): "read",
    # Pages of the console.
    ("GET", "/"): "read",
    ("GET", "/console/galleries/{name}"): "read",
    ("GET", "/console/galleries/{name}/item"): "read",
    ("POST", "/console/galleries/{name}/search"): "search",
    ("GET", "/console/galleries/{name}/upgrade"): "upgrade",
    ("GET", "/console/upgrades"): "read",
    ("GET", "/console/upgrades/{upgrade_id}"): "read",
    ("GET", "/console/upgrades/{upgrade_id}/report"): "read",
    ("GET", "/console/upgrades/{upgrade_id}/backfill"): "read",
    ("GET", "/console/upgrades/{upgrade_id}/compare"): "read",
    ("GET", "/console/external-upgrades"): "read",
    ("GET", "/console/external-upgrades/{external_id}"): "read",
    ("GET", "/console/stores/{name}"): "read",
    ("GET", "/console/jobs"): "read",
    ("GET", "/console/jobs/{job_id}"): "read",
    ("GET", "/console/versions"): "read",
    ("GET", "/console/keys"): "admin",
    ("GET", "/console/audit"): "admin",
    # Keys, and what was done by whom.
    ("GET", "/v1/audit"): "admin",
    ("POST", "/v1/erasures"): "admin",
    ("GET", "/v1/keys"): "admin",
    ("POST", "/v1/keys"): "admin",
    ("DELETE", "/v1/keys/{key_id}"): "admin",
    ("POST", "/v1/keys/{key_id}/rotate"): "admin",
}


_PARAMETER = re.compile(r"\{(\w+)\}")
_WITH_SLASHES = "item_id"  # an item's id may hold any character


class MissingScope(Forbidden):
    """The key does not have the scope that the request needs."""


class UnknownOperation(NotFound):
    """No operation has this path and method."""


@dataclass(frozen=True)
class Operation:
    """One operation of the API: its method, its path with names of parameters, and its scope; None for any key's."""

    method: str
    path: str
    scope: Scope | None
    is_public: bool


def _operations() -> list[tuple[re.Pattern[str], Operation]]:
    public = [Operation(*operation, None, True) for operation in sorted(PUBLIC)]
    of_any_key = [Operation(*operation, None, False) for operation in sorted(ANY_KEY)]
    scoped = [Operation(*operation, scope, False) for operation, scope in SCOPE_OF.items()]
    return [(_pattern(operation.path), operation) for operation in (*public, *of_any_key, *scoped)]


def _pattern(path: str) -> re.Pattern[str]:
    """Return what matches a path, as the router does."""
    return re.compile(_PARAMETER.sub(lambda found: ".+" if found[1] == _WITH_SLASHES else "[^/]+", path), re.DOTALL)


_OPERATIONS = _operations()
_REMEMBERED_CHARACTERS = 256


def operation_of(method: str, path: str) -> Operation | None:
    """Return the operation that a request asks for; None for one that is not in the tables."""
    find = _remembered if len(path) <= _REMEMBERED_CHARACTERS else _find
    return find(method, path.removesuffix("/") or "/")


def _find(method: str, path: str) -> Operation | None:
    for pattern, operation in _OPERATIONS:
        if operation.method == method and pattern.fullmatch(path):
            return operation
    return None


_remembered = lru_cache(maxsize=1_024)(_find)


def check_scope(who: Identity, operation: Operation | None) -> None:
    """Raise `MissingScope` (403) unless whoever asks has the operation's scope, and `UnknownOperation` (404)."""
    if operation is None and not who.may(ADMIN):
        raise UnknownOperation("There is no such path, or it has no such method.")
    if operation is not None and operation.scope is not None and not who.may(operation.scope):
        raise MissingScope(_sentence(operation.scope, "this request"))


def require(scope: Scope, what: str) -> None:
    """Raise `MissingScope` (403) unless whoever is served has the scope that `what` needs."""
    if not identity.current.get().may(scope):
        raise MissingScope(_sentence(scope, what))


def _sentence(scope: Scope, what: str) -> str:
    return f"The key lacks the scope {scope!r}, which {what} needs: ask an admin for a key that has it."
