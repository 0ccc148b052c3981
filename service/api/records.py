"""`/v1/upgrades/{id}/record`, and the public key that it is verified by."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from service.api.dependencies import IdPath, PartsDependency
from service.api.refusals import refusals
from service.domain.upgrade.records import signed_record
from service.domain.upgrade.upgrades import UnknownUpgrade
from service.errors import NotFound
from service.settings import Settings
from service.signatures import ALGORITHM, Signer

router = APIRouter(tags=["audit"])


class NoSigningKey(NotFound):
    """The service signs nothing."""


class SignatureView(BaseModel):
    """`value` is over the canonical JSON of the record; both it and the key are base64."""

    algorithm: str
    public_key: str
    value: str


class RecordView(BaseModel):
    """`signature` is null where the service has no key, and `unsigned_because` says so."""

    record: dict[str, Any]
    signature: SignatureView | None
    unsigned_because: str | None = None


class PublicKeyView(BaseModel):
    algorithm: str
    public_key: str


@router.get("/upgrades/{upgrade_id}/record", response_model_exclude_unset=True, responses=refusals(UnknownUpgrade))
def get_record(upgrade_id: IdPath, parts: PartsDependency) -> RecordView:
    """Return what an upgrade was made by, on what evidence it went live, and who decided so: digests of networks,
    trainings, reports and indexes, counts, events, and entries of the audit, signed.

    `gallery-upgrade record verify` checks it, anywhere."""
    with parts.database.session_scope(snapshot=True) as session:
        return RecordView(**signed_record(session, upgrade_id, _signer(parts.settings)))


@router.get("/signing-key", responses=refusals(NoSigningKey))
def get_public_key(parts: PartsDependency) -> PublicKeyView:
    """Return the public key by which records are verified; 404 where they are not signed."""
    signer = _signer(parts.settings)
    if signer is None:
        raise NoSigningKey("Records are not signed here: set GALLERY_SIGNING_KEY.")
    return PublicKeyView(algorithm=ALGORITHM, public_key=signer.public_key)


def _signer(settings: Settings) -> Signer | None:
    return None if settings.signing_key is None else Signer.of(settings.signing_key)
