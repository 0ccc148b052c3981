"""Which engine a process uses is what its settings say."""

import sys
from pathlib import Path

import pytest

from service.blobs import BlobStore
from service.db import Database
from service.domain.indexes.choice import choose_engine
from service.domain.indexes.faiss_engine import FaissEngine
from service.domain.indexes.milvus_engine import MilvusEngine
from service.settings import Settings
from tests.milvus import milvus


@pytest.fixture
def blobs(settings: Settings) -> BlobStore:
    return BlobStore(settings.blob_location)


def test_without_an_index_url_indexes_are_faiss_files(database: Database, blobs: BlobStore, settings: Settings) -> None:
    engine = choose_engine(database, blobs, settings)

    assert settings.index_url is None
    assert isinstance(engine, FaissEngine)


def test_with_an_index_url_indexes_are_collections_of_that_milvus(
    database: Database, blobs: BlobStore, settings: Settings, tmp_path: Path
) -> None:
    with milvus(tmp_path / "milvus") as url:
        engine = choose_engine(database, blobs, settings.model_copy(update={"index_url": url}))
        engine.close()

        assert isinstance(engine, MilvusEngine)
        assert Path(url).exists()


def test_an_index_url_without_pymilvus_is_refused_with_what_to_install(
    database: Database, blobs: BlobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("service.domain.indexes.milvus_engine", "service.index.milvus"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pymilvus", None)  # as where it is not installed

    with pytest.raises(
        RuntimeError, match=r"GALLERY_INDEX_URL needs pymilvus: pip install 'gallery-upgrade\[milvus\]'"
    ):
        choose_engine(database, blobs, settings.model_copy(update={"index_url": "http://127.0.0.1:1"}))


def test_faiss_is_chosen_where_pymilvus_is_not_installed(
    database: Database, blobs: BlobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)

    engine = choose_engine(database, blobs, settings)

    assert isinstance(engine, FaissEngine)
