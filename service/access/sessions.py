"""Sessions of browsers: who showed a key there once acts by it for some hours, by a cookie that no script can read.

A row holds the cookie's SHA-256 and the key's id: where the key is revoked or has expired, so has the session.
"""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.tables import BrowserSession

LASTS = timedelta(hours=12)
_COOKIE_BYTES = 32


def digest_of(cookie: str) -> bytes:
    """Return what a row knows a cookie by."""
    return hashlib.sha256(cookie.encode()).digest()


def begin_session(session: Session, key_id: str) -> str:
    """Begin a session and return its cookie; sessions that have ended are removed on the way."""
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at < func.now()))
    cookie = secrets.token_urlsafe(_COOKIE_BYTES)
    session.add(BrowserSession(token_sha256=digest_of(cookie), key_id=key_id, expires_at=datetime.now(UTC) + LASTS))
    return cookie


def end_session(session: Session, cookie: str) -> None:
    """End a session; nothing, where there is none."""
    session.execute(delete(BrowserSession).where(BrowserSession.token_sha256 == digest_of(cookie)))


def find_session(session: Session, digest: bytes) -> str | None:
    """Return the id of the key that a cookie acts by; None when its session has ended."""
    query = select(BrowserSession.key_id)
    return session.scalar(query.where(BrowserSession.token_sha256 == digest, BrowserSession.expires_at > func.now()))
