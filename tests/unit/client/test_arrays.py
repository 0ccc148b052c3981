"""Vectors from files of other galleries."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gallery_upgrade.arrays import arrow_stream, read_vectors, vectors_table

IDS = ["a", "b", "c"]
VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)


def as_parquet(folder: Path) -> Path:
    pq.write_table(vectors_table(IDS, VECTORS, None), folder / "part.parquet")
    return folder / "part.parquet"


def as_folder(folder: Path) -> Path:
    for row in range(3):
        pq.write_table(vectors_table(IDS[row : row + 1], VECTORS[row : row + 1], None), folder / f"{row}.parquet")
    return folder


def as_arrow_stream(folder: Path) -> Path:
    (folder / "rows.arrows").write_bytes(arrow_stream(vectors_table(IDS, VECTORS, None)))
    return folder / "rows.arrows"


def as_arrow_file(folder: Path) -> Path:
    table = vectors_table(IDS, VECTORS, None)
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "rows.arrow"


def as_array(folder: Path) -> Path:
    np.save(folder / "rows.npy", VECTORS)
    (folder / "rows.ids.txt").write_text("a\nb\nc\n")
    return folder / "rows.npy"


def as_clip_retrieval(folder: Path) -> Path:
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    for part, rows in enumerate([slice(0, 2), slice(2, 3)]):
        np.save(folder / f"img_emb/img_emb_{part}.npy", VECTORS[rows])
        pq.write_table(pa.table({"image_path": IDS[rows]}), folder / f"metadata/metadata_{part}.parquet")
    return folder


def as_faiss(folder: Path) -> Path:
    index = faiss.IndexFlatL2(2)
    index.add(VECTORS)
    faiss.write_index(index, str(folder / "rows.faiss"))
    (folder / "rows.ids.txt").write_text("a\nb\nc\n")
    return folder / "rows.faiss"


LAYOUTS = [as_faiss, as_parquet, as_folder, as_arrow_stream, as_arrow_file, as_array, as_clip_retrieval]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_rows_are_read_in_order_a_few_at_a_time(tmp_path: Path, layout: object) -> None:
    tables = list(read_vectors(layout(tmp_path), rows=2))  # type: ignore[operator]

    assert max(table.num_rows for table in tables) <= 2
    whole = pa.concat_tables(tables)
    assert whole["id"].to_pylist() == IDS
    assert np.array_equal(np.stack(whole["embedding"].to_numpy()), VECTORS)


def test_an_index_of_lists_has_ids_of_its_own(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    index = faiss.IndexIDMap2(faiss.index_factory(2, "IVF2,Flat"))
    index.train(rows)
    index.add_with_ids(rows, np.arange(100, 150))
    faiss.write_index(index, str(tmp_path / "rows.index"))

    whole = pa.concat_tables(read_vectors(tmp_path / "rows.index", rows=20))

    assert whole["id"].to_pylist() == [str(number) for number in range(100, 150)]
    assert np.allclose(np.stack(whole["embedding"].to_numpy()), rows)


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", VECTORS)

    with pytest.raises(FileNotFoundError, match=r"rows\.ids\.txt is needed"):
        list(read_vectors(tmp_path / "rows.npy", rows=2))
    (tmp_path / "rows.ids.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="but there are 2 ids"):
        list(read_vectors(tmp_path / "rows.npy", rows=2))
    with pytest.raises(ValueError, match="is neither Parquet"):
        list(read_vectors(tmp_path / "rows.csv", rows=2))
    with pytest.raises(FileNotFoundError, match="neither Parquet files nor"):
        list(read_vectors(tmp_path, rows=2))
