"""Comparing a file with what an upgrade gives: nothing is said of a right one, and every difference of a wrong one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from edge.errors import EdgeError
from edge.sources import METADATA_KEY
from edge.transforming import Job, transform
from edge.verifying import verify
from tests.unit.edge.files import FROM, ROWS, SIDE, drawn, read_table, table, write_index, write_networks, write_table


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """An upgrade that has been done."""
    h, g = write_networks(tmp_path)
    made = Job(write_table(tmp_path / "in.parquet", table()), tmp_path / "out.parquet", h, g)
    transform(made, overwrite=False)
    return made


def with_column(content: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return content.set_column(content.column_names.index(name), name, column)


def moved(content: pa.Table, name: str, rows: slice, said: bool = True) -> pa.Table:
    """Move vectors a little; what the file says of its checksum is left out unless `said`."""
    values = content[name].combine_chunks().flatten().to_numpy().reshape(len(content), -1).copy()
    values[rows] *= 1.01
    column = pa.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])
    if not said:
        about = json.loads(content.schema.metadata[METADATA_KEY])
        about.pop(f"{name}_sha256")
        content = content.replace_schema_metadata({METADATA_KEY: json.dumps(about)})
    return with_column(content, name, column)


def test_a_right_output_has_no_differences_in_any_format(job: Job, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", drawn(FROM))
    np.save(tmp_path / "side.npy", drawn(SIDE))
    seconds = with_column(table(), "taken", pa.array(range(ROWS), pa.timestamp("s")))
    stream = write_table(tmp_path / "in.arrows", seconds)
    index = write_index(tmp_path / "in.faiss", np.arange(ROWS))
    jobs = [
        job,
        replace(job, source=stream, output=tmp_path / "out2.parquet"),
        Job(tmp_path / "in.npy", tmp_path / "out.npy", job.h, side_information=tmp_path / "side.npy"),
        Job(index, tmp_path / "out.faiss", job.h, side_information=tmp_path / "side.npy"),
    ]
    for other in jobs[1:]:
        transform(other, overwrite=False)

    assert [verify(other, sample=500, seed=0) for other in jobs] == [[]] * len(jobs)


CHANGES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a row missing": (lambda content: content.slice(1), "OUT has 9999 rows"),
    "rows in another order": (lambda content: content.sort_by([("id", "descending")]), "'id' differs"),
    "another label": (
        lambda content: with_column(content, "label", pc.fill_null(content["label"], "b").combine_chunks()),
        "'label' differs",
    ),
    "a column missing": (lambda content: content.drop_columns("taken"), "no column 'taken'"),
    "a column too many": (lambda content: content.append_column("more", content["id"]), "column 'more'"),
    "another origin": (
        lambda content: with_column(content, "origin", pa.array(["encoded"] * len(content))),
        "another origin",
    ),
    "hops as before": (lambda content: with_column(content, "hops", table()["hops"]), "one hop more"),
    "every vector moved": (
        lambda content: moved(content, "embedding", slice(None), said=False),
        "from what h or g gives",
    ),
    "one vector moved": (lambda content: moved(content, "embedding", slice(7, 8)), "checksum"),
    "side-information moved": (
        lambda content: moved(content, "side_information", slice(None), said=False),
        "'side_information' of row",
    ),
    "vectors of another length": (lambda content: with_column(content, "embedding", table()["embedding"]), "are due"),
    "made by another network": (
        lambda content: content.replace_schema_metadata({METADATA_KEY: '{"h_sha256": "0"}'}),
        "another h",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_difference_is_found_and_named(job: Job, name: str) -> None:
    change, sentence = CHANGES[name]
    write_table(job.output, change(read_table(job.output)))

    assert sentence in " ".join(verify(job, sample=1_000, seed=0))


def test_files_of_different_kinds_cannot_be_compared(job: Job, tmp_path: Path) -> None:
    np.save(tmp_path / "out.npy", drawn(FROM))

    with pytest.raises(EdgeError, match="of kind"):
        verify(replace(job, output=tmp_path / "out.npy"), sample=10, seed=0)


def test_an_index_with_other_ids_is_different(job: Job, tmp_path: Path) -> None:
    np.save(tmp_path / "side.npy", drawn(SIDE))
    given = Job(
        write_index(tmp_path / "in.faiss", np.arange(ROWS)),
        tmp_path / "out.faiss",
        job.h,
        side_information=tmp_path / "side.npy",
    )
    transform(given, overwrite=False)
    write_index(tmp_path / "in.faiss", np.arange(ROWS) + 1)

    assert verify(given, sample=10, seed=0) == ["The ids of the indexes differ."]
