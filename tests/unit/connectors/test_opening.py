"""Which module opens a URL, and what a URL says."""

import sys
from pathlib import Path

import pytest

from service.connectors.address import parse
from service.connectors.opening import open_store
from service.connectors.store import KeyRange, NewSide, StoreRefused, keep_open_ends


def test_a_url_of_no_store_is_refused_with_those_that_are() -> None:
    with pytest.raises(StoreRefused, match="qdrant://"):
        open_store("ftp://host/gallery")


@pytest.mark.parametrize(
    ("url", "module", "library", "extra"),
    [
        ("qdrant:///folder?collection=items", "qdrant", "qdrant_client", "qdrant"),
        ("milvus:///m.db?collection=items&key=id&embedding=v", "milvus", "pymilvus", "milvus"),
        ("chroma:///folder?collection=items", "chroma", "chromadb", "chroma"),
        ("lancedb:///folder?table=items&key=id&embedding=v", "lance", "lancedb", "lancedb"),
    ],
)
def test_a_library_that_is_missing_is_named_by_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, library: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, f"service.connectors.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(StoreRefused) as refused:
        open_store(url)

    assert f"pip install 'gallery-upgrade[{extra}]'" in refused.value.message


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("file:///a.parquet?key=id&key=other", "once: key"),
        ("file:///a.parquet?key", "cannot be read"),
        ("file://host/a.parquet", "file:///absolute/path"),
        ("qdrant+http:///?collection=x", "qdrant+http://host:port/"),
        ("postgresql://me:gehe/im@host/x?table=a", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_and_not_repeated(url: str, named: str) -> None:
    if url.startswith("qdrant"):
        pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")

    with pytest.raises(StoreRefused) as refused:
        open_store(url)

    assert named in refused.value.message
    assert "gehe" not in refused.value.message


def test_what_is_secret_is_not_in_an_address_that_is_printed() -> None:
    address = parse("qdrant+https://me:geheim@host:1/?api_key=heimlich&collection=x")

    assert (address.password, address.parameters["api_key"]) == ("geheim", "heimlich")
    assert "geheim" not in repr(address)
    assert "heimlich" not in repr(address)


def test_a_path_is_decoded() -> None:
    assert parse("file:///a%20b/c%3Fd.parquet").file == Path("/a b/c?d.parquet")


@pytest.mark.parametrize("name", ["", "V2", "a-b", "a" * 33, "a'b"])
def test_a_new_side_has_a_plain_name(name: str) -> None:
    with pytest.raises(StoreRefused, match="name"):
        NewSide(name, 3, None)


def test_bounds_cut_the_keys_into_ranges_with_open_ends() -> None:
    assert keep_open_ends([]) == [KeyRange(None, None)]
    assert keep_open_ends(["b", "d"]) == [KeyRange(None, "b"), KeyRange("b", "d"), KeyRange("d", None)]
