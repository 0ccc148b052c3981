"""Keys: `gu_<8 characters>_<secret of 256 bits>`. A row holds the secret's SHA-256 and no more of it, so that a secret
is shown once, to whoever made the key. A key is never removed: audits name it.
"""

import hashlib
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, exists, func, or_, select, true, update
from sqlalchemy.orm import Session

from service import identity, logs
from service.access.operations import SCOPES
from service.access.tenancy import own
from service.audit import Act, Subject, record
from service.errors import Conflict, Forbidden, NotFound, Unprocessable
from service.identity import ADMIN, DEFAULT_TENANT, EVERY_GALLERY, NOBODY
from service.tables import ApiKey

DEFAULT_DAYS = 90
_ROTATED_FOR = timedelta(hours=1)  # both keys are valid so long
_SECRET_BYTES = 32
_ID_LETTERS = string.ascii_lowercase + string.digits
_TOKEN = re.compile(r"gu_([A-Za-z0-9]{8})_([A-Za-z0-9_-]{43})")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GLOB = re.compile(r"[A-Za-z0-9._*?-]{1,128}")

events = logs.Events(__name__)


class UnknownKeyId(NotFound):
    """No key has this id."""


class InvalidKeyRequest(Unprocessable):
    """What is wanted of a key does not fit together."""


class KeyEnded(Conflict):
    """The key is not valid any more, or was rotated already."""


class NotYourTenant(Forbidden):
    """Keys of another tenant are made by admins of the default one."""


@dataclass(frozen=True)
class WantedKey:
    """What a key is to be; without `tenant` it is its maker's."""

    name: str
    scopes: Sequence[str]
    galleries: Sequence[str] = EVERY_GALLERY
    tenant: str | None = None
    days: int = DEFAULT_DAYS


@dataclass(frozen=True)
class NewKey:
    """A key that was just made, and the token that is shown this once."""

    row: ApiKey
    token: str = field(repr=False)


@dataclass(frozen=True)
class Token:
    """A token in its parts: the id, which may be told, and the digest of the secret."""

    key_id: str
    secret_sha256: bytes = field(repr=False)


def parse_token(text: str) -> Token | None:
    """Return the parts of a token; None for what is none."""
    found = _TOKEN.fullmatch(text)
    return None if found is None else Token(found[1], hashlib.sha256(found[2].encode()).digest())


def holds_token(text: str) -> bool:
    """Return whether a token is somewhere in the text."""
    return _TOKEN.search(text) is not None


def create_key(session: Session, wanted: WantedKey) -> NewKey:
    """Make a key. Raises `InvalidKeyRequest` (422), and `NotYourTenant` (403) for a tenant that is not the maker's."""
    who = identity.current.get()
    tenant = wanted.tenant or who.tenant
    _check(replace(wanted, tenant=tenant))
    if tenant != who.tenant and not (who is NOBODY or who.is_operator):
        raise NotYourTenant(f"A key of tenant {tenant!r} is made by an admin of tenant {DEFAULT_TENANT!r}.")
    row = ApiKey(
        name=wanted.name,
        tenant=tenant,
        scopes=sorted(set(wanted.scopes)),
        galleries=list(wanted.galleries),
        expires_at=datetime.now(UTC) + timedelta(days=wanted.days),
    )
    new = _add(session, row)
    what = {"name": row.name, "tenant": row.tenant, "scopes": row.scopes, "galleries": row.galleries}
    record(session, Act.KEY_CREATED, Subject("key", row.key_id), after=what)
    return new


def list_keys(session: Session, after_id: int, limit: int) -> list[ApiKey]:
    """Return up to `limit` keys with row ids above `after_id`, by row id: the tenant's, or an operator's all."""
    query = select(ApiKey).where(ApiKey.id > after_id, _administered()).order_by(ApiKey.id).limit(limit)
    return list(session.scalars(query))


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """End a key for good; one that was revoked stays so. Raises `UnknownKeyId` (404)."""
    row = _lock(session, key_id)
    if row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
        session.flush()  # `last_used_at` and the others are as they were
        record(session, Act.KEY_REVOKED, Subject("key", key_id))
        events.info("keys.revoked", key=key_id, by=identity.current.get().name)
    return row


def rotate_key(session: Session, key_id: str) -> NewKey:
    """Make a key that may do the same, for as long as the old one was made for; the old one is valid for an hour more.

    Raises `UnknownKeyId` (404), and `KeyEnded` (409) for a key that is not valid any more or was rotated.
    """
    old = _lock(session, key_id)
    now = datetime.now(UTC)
    if old.revoked_at is not None or old.rotated_at is not None or old.expires_at <= now:
        raise KeyEnded(f"Key {key_id} has expired, or was revoked or rotated: make a new one.")
    row = ApiKey(
        name=old.name,
        tenant=old.tenant,
        scopes=old.scopes,
        galleries=old.galleries,
        expires_at=now + (old.expires_at - old.created_at),
    )
    old.rotated_at, old.expires_at = now, min(old.expires_at, now + _ROTATED_FOR)
    new = _add(session, row)
    record(session, Act.KEY_ROTATED, Subject("key", key_id), after={"key": new.row.key_id})
    return new


def is_any_admin(session: Session) -> bool:
    """Return whether there is a valid key by which others can be made."""
    valid = ApiKey.revoked_at.is_(None) & (ApiKey.expires_at > func.now())
    return bool(session.scalar(select(exists().where(valid, ApiKey.scopes.contains([ADMIN])))))


def find_key(session: Session, key_id: str) -> ApiKey | None:
    """Return the row of a key, whoever's it is, and note at most once a minute that it was used."""
    unnoted = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - timedelta(minutes=1))
    session.execute(update(ApiKey).where(ApiKey.key_id == key_id, unnoted).values(last_used_at=func.now()))
    return session.scalar(select(ApiKey).where(ApiKey.key_id == key_id))


def draw_token() -> str:
    """Return a token that no row knows."""
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    return f"gu_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def _add(session: Session, row: ApiKey) -> NewKey:
    token = draw_token()
    parts = parse_token(token)
    assert parts is not None
    row.key_id, row.secret_sha256 = parts.key_id, parts.secret_sha256
    row.created_by = identity.current.get().key_id
    session.add(row)
    session.flush()  # an id that is taken, one in 10^12, is an error here
    session.refresh(row)
    events.info("keys.created", key=row.key_id, name=row.name, tenant=row.tenant, scopes=row.scopes)
    return NewKey(row, token)


def _lock(session: Session, key_id: str) -> ApiKey:
    query = select(ApiKey).where(ApiKey.key_id == key_id, _administered()).with_for_update()
    row = session.scalar(query)
    if row is None:
        raise UnknownKeyId(f"There is no key {key_id!r}.")
    return row


def _administered() -> ColumnElement[bool]:
    """The keys that whoever is served may administer: its tenant's, or an operator's all."""
    return true() if identity.current.get().is_operator else own(ApiKey.tenant)


def _check(wanted: WantedKey) -> None:
    unknown = sorted(set(wanted.scopes) - set(SCOPES))
    if unknown or not wanted.scopes:
        raise InvalidKeyRequest(f"Scopes are {', '.join(SCOPES)}; not {', '.join(unknown) or 'none at all'}.")
    if wanted.tenant is None or not _TENANT.fullmatch(wanted.tenant):
        raise InvalidKeyRequest("A tenant's name has 1 to 64 letters, digits, dots, dashes and underscores.")
    if "metrics" in wanted.scopes and wanted.tenant != DEFAULT_TENANT:
        raise InvalidKeyRequest(f"Metrics are of all tenants: only keys of tenant {DEFAULT_TENANT!r} read them.")
    wrong = [glob for glob in wanted.galleries if not _GLOB.fullmatch(glob)]
    if wrong or not wanted.galleries:
        raise InvalidKeyRequest("Galleries are patterns of names in which * and ? stand for any characters.")
    if not 1 <= wanted.days <= 3_650:
        raise InvalidKeyRequest("A key is valid for 1 to 3,650 days.")
