"""The blobs that rows of networks name. They are kept under their digest and shared; those of a deleted row are removed
when nothing refers to them any more."""

from collections.abc import Sequence

from sqlalchemy import Text, any_, literal, select, union
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from service.advisory_locks import AdvisoryLock, hold
from service.blobs import BlobStore
from service.tables import JudgedQuery, ModelVersion, Transformation

# Every column that names a blob by its digest.
_BLOB_COLUMNS = (
    ModelVersion.embedding_model_digest,
    ModelVersion.side_information_model_digest,
    Transformation.h_digest,
    Transformation.g_digest,
    JudgedQuery.image_digest,
)


def delete_unreferenced_blobs(session: Session, blobs: BlobStore, digests: Sequence[str]) -> None:
    """Remove blobs that no row refers to. Call it after the deletion has committed: a crash before leaves a blob that
    nothing names, never a row without its blob."""
    hold(session, AdvisoryLock.BLOBS)
    wanted = any_(literal(list(digests), ARRAY(Text)))
    referenced = set(session.scalars(union(*(select(column).where(column == wanted) for column in _BLOB_COLUMNS))))
    for digest in set(digests) - referenced:
        blobs.delete(digest)
