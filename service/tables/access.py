"""Who may do what, what was asked before, and who did what."""

from datetime import datetime
from typing import Any

from sqlalchemy import Identity, Index, LargeBinary, Text, func
from sqlalchemy.dialects.postgresql import ARRAY, JSON
from sqlalchemy.orm import Mapped, mapped_column

from service.identity import DEFAULT_TENANT
from service.tables.columns import Base, Json


class ApiKey(Base):
    """A key of the API (`service.access.keys`): `key_id` is the part of it that may be told, `secret_sha256` the digest
    of the rest, `galleries` patterns of gallery names, and `created_by` the `key_id` of its maker, null for the command
    line."""

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    key_id: Mapped[str] = mapped_column(unique=True)
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    galleries: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_by: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    rotated_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class BrowserSession(Base):
    """A browser that showed a key (`service.access.sessions`); its cookie's SHA-256, and whose key it acts by."""

    __tablename__ = "browser_sessions"

    token_sha256: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    key_id: Mapped[str]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class IdempotencyKey(Base):
    """The answer to a POST of a tenant that carried `Idempotency-Key`; `status` is null until it was answered."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True, server_default=DEFAULT_TENANT)
    key: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    status: Mapped[int | None]
    headers: Mapped[list[Any] | None]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AuditEntry(Base):
    """One act: who did what to what, with which request; never changed, and removed by `audit prune` alone
    (`service.audit`).

    `id` counts from 1 without a gap. `hash` is the SHA-256 over that of the entry before and this one's canonical JSON.
    `before` and `after` are kept as the text that was hashed, which JSONB would not do.
    """

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    key_id: Mapped[str | None]
    name: Mapped[str]
    tenant: Mapped[str]
    action: Mapped[str]
    subject_kind: Mapped[str]
    subject: Mapped[str]
    request_id: Mapped[str]
    before: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    reason: Mapped[str | None]
    hash: Mapped[str]

    __table_args__ = (Index(None, "subject_kind", "subject", "id"),)
