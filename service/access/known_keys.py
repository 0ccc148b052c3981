"""Who a token is, as one process knows it: each is looked up once in a few seconds, and from memory in between, so that
a key costs a query nothing, and one that was revoked is refused everywhere within `REMEMBERED_SECONDS`."""

import hmac
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from service.access import keys, sessions
from service.access.keys import Token, parse_token
from service.access.operations import SCOPES
from service.db import Database
from service.errors import Unauthorized
from service.identity import ADMIN, DEFAULT_TENANT, Identity

REMEMBERED_SECONDS = 3.0
# Whoever is served without a key, where none is needed.
ANYONE = Identity(key_id=None, name="-", tenant=DEFAULT_TENANT, scopes=frozenset(SCOPES))
# Whoever asks what needs no key, where others do: sees nothing.
STRANGER = Identity(key_id=None, name="-", tenant="", scopes=frozenset())


class UnknownKey(Unauthorized):
    """The key is none, or not valid any more."""


class UnknownSession(Unauthorized):
    """The browser's session has ended."""


@dataclass(frozen=True)
class _Known:
    who: Identity
    secret_sha256: bytes = field(repr=False)
    expires_at: datetime
    revoked: bool
    read_at: float


class KnownKeys:
    """The keys of one process, among them `admin_key` of its settings, if that is set; used from several threads."""

    def __init__(self, database: Database, admin_key: str) -> None:
        self._database = database
        self._known: dict[str, _Known] = {}
        self._sessions: dict[bytes, tuple[str, float]] = {}
        self._admin = parse_token(admin_key)

    def remembered(self, token: str) -> Identity | None:
        """Return whose the token is, if that is known without asking the database. Raises `UnknownKey` (401)."""
        parts = _parsed(token)
        if self._admin is not None and parts.key_id == self._admin.key_id:
            return self._as_admin(parts, self._admin)
        known = self._known.get(parts.key_id)
        if known is None or time.monotonic() - known.read_at > REMEMBERED_SECONDS:
            return None
        return _identified(parts, known)

    def look_up(self, token: str) -> Identity:
        """Return whose the token is, as rows say. Raises `UnknownKey` (401)."""
        parts = _parsed(token)
        if self._admin is not None and parts.key_id == self._admin.key_id:
            return self._as_admin(parts, self._admin)
        return _identified(parts, self._read(parts.key_id))

    def session_remembered(self, cookie: str) -> Identity | None:
        """Return who a browser's cookie acts for, if that is known without asking the database; as `remembered`."""
        session = self._sessions.get(sessions.digest_of(cookie))
        if session is None or time.monotonic() - session[1] > REMEMBERED_SECONDS:
            return None
        known = self._known.get(session[0])
        if known is None or time.monotonic() - known.read_at > REMEMBERED_SECONDS:
            return None
        return _valid(known)

    def session_looked_up(self, cookie: str) -> Identity:
        """Return who a browser's cookie acts for, as rows say. Raises `UnknownSession` and `UnknownKey` (401)."""
        digest = sessions.digest_of(cookie)
        with self._database.session_scope() as session:
            key_id = sessions.find_session(session, digest)
        if key_id is None:
            self._sessions.pop(digest, None)
            raise UnknownSession("The session has ended: show a key again, by POST /v1/session.")
        if self._admin is not None and key_id == self._admin.key_id:
            return _admin_identity(self._admin)
        now = time.monotonic()
        young = {key: session for key, session in self._sessions.items() if now - session[1] <= REMEMBERED_SECONDS}
        self._sessions = {**young, digest: (key_id, now)}
        return _valid(self._read(key_id))

    def _read(self, key_id: str) -> _Known:
        with self._database.session_scope() as session:
            row = keys.find_key(session, key_id)
        if row is None:
            self._known.pop(key_id, None)
            raise _unknown()
        who = Identity(row.key_id, row.name, row.tenant, frozenset(row.scopes), tuple(row.galleries))
        known = _Known(who, row.secret_sha256, row.expires_at, row.revoked_at is not None, time.monotonic())
        self._known[key_id] = known
        return known

    def _as_admin(self, parts: Token, admin: Token) -> Identity:
        if not hmac.compare_digest(parts.secret_sha256, admin.secret_sha256):
            raise _unknown()
        return _admin_identity(admin)


def _parsed(token: str) -> Token:
    parts = parse_token(token)
    if parts is None:
        raise UnknownKey("That is no key: one begins with gu_ and has 55 characters.")
    return parts


def _identified(parts: Token, known: _Known) -> Identity:
    if not hmac.compare_digest(parts.secret_sha256, known.secret_sha256):
        raise _unknown()
    return _valid(known)


def _valid(known: _Known) -> Identity:
    if known.revoked:
        raise UnknownKey(f"Key {known.who.key_id} was revoked.")
    if known.expires_at <= datetime.now(UTC):
        raise UnknownKey(f"Key {known.who.key_id} has expired.")
    return known.who


def _admin_identity(admin: Token) -> Identity:
    return Identity(admin.key_id, "GALLERY_ADMIN_KEY", DEFAULT_TENANT, frozenset([ADMIN]))


def _unknown() -> UnknownKey:
    return UnknownKey("There is no such key.")
