"""Which engine holds the indexes: decided here, once per process."""

from service.blobs import BlobStore
from service.db import Database
from service.domain.indexes.engine import IndexEngine
from service.domain.indexes.faiss_engine import FaissEngine
from service.settings import Settings


def choose_engine(database: Database, blobs: BlobStore, settings: Settings) -> IndexEngine:
    """Return the engine that `index_url` names: a Milvus server, or FAISS files where it is unset."""
    if settings.index_url is None:
        return FaissEngine(database, blobs, settings)
    try:
        from service.domain.indexes.milvus_engine import MilvusEngine
    except ImportError as error:  # pymilvus is only there where Milvus is used
        raise RuntimeError("GALLERY_INDEX_URL needs pymilvus: pip install 'gallery-upgrade[milvus]'") from error
    return MilvusEngine(database, blobs, settings, settings.index_url)
