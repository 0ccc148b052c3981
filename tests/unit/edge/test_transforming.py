"""Upgrading a file of vectors: every format, what becomes of its columns, kills, and refusals that leave no output."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from onnx import helper

from edge.errors import EdgeError
from edge.outputs import Columns
from edge.sources import METADATA_KEY
from edge.transforming import Job, Progress, transform
from tests.unit.edge.files import (
    FROM,
    ROWS,
    SIDE,
    TO,
    drawn,
    expected,
    read_table,
    table,
    vectors,
    write_index,
    write_networks,
    write_table,
)
from tests.unit.models.artifact_files import normal, onnx_bytes, onnx_matrix


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """The upgrade of a Parquet file by h and g."""
    h, g = write_networks(tmp_path)
    source = write_table(tmp_path / "in.parquet", table())
    return Job(source, tmp_path / "out.parquet", h, g)


def left(job: Job) -> list[str]:
    """Return what a run has left behind beside its input."""
    return sorted(path.name for path in job.output.parent.iterdir() if path.name.startswith("out"))


@pytest.mark.parametrize("before", [".parquet", ".arrow", ".arrows"])
@pytest.mark.parametrize("after", [".parquet", ".arrow", ".arrows"])
def test_a_table_is_upgraded_and_keeps_its_other_columns(job: Job, before: str, after: str) -> None:
    source = write_table(job.source.with_suffix(before), table())
    job = replace(job, source=source, output=job.output.with_suffix(after))

    assert transform(job, overwrite=False) == ROWS

    found, given = read_table(job.output), table()
    names = ["id", "embedding", "taken", "side_information", "hops", "label", "origin", "uncertainty"]
    assert found.column_names == names
    embedding, side, uncertainty = expected(drawn(FROM), drawn(SIDE))
    np.testing.assert_allclose(vectors(found, "embedding"), embedding, atol=1e-5)
    np.testing.assert_allclose(vectors(found, "side_information"), side, atol=1e-4)
    np.testing.assert_allclose(found["uncertainty"].to_numpy(), uncertainty, rtol=1e-3)
    assert all(found[name].equals(given[name]) for name in ("id", "taken", "label"))
    assert found["hops"].type == pa.int8()
    assert found["hops"].to_pylist() == [(hops or 0) + 1 for hops in given["hops"].to_pylist()]
    assert found["origin"].to_pylist() == ["transformed"] * ROWS
    assert left(job) == [job.output.name]


def test_without_g_the_side_information_of_the_old_version_is_left_out(job: Job) -> None:
    transform(replace(job, g=None), overwrite=False)

    assert "side_information" not in read_table(job.output).column_names


def test_float16_stays_float16_and_columns_may_have_other_names(job: Job) -> None:
    renamed = table(dtype=np.float16).rename_columns(["id", "vector", "taken", "extra", "hops", "label"])
    write_table(job.source, renamed)

    transform(replace(job, columns=Columns("vector", "extra")), overwrite=False)

    found = read_table(job.output)
    assert found.schema.field("vector").type == pa.list_(pa.float16(), TO)
    embedding, _, _ = expected(drawn(FROM).astype(np.float16), drawn(SIDE))
    np.testing.assert_allclose(vectors(found, "vector").astype(np.float32), embedding, atol=1e-3)


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), FROM)])
def test_every_form_of_list_is_read(job: Job, kind: pa.DataType) -> None:
    content = table(100)
    column = pa.array(drawn(FROM, 100).tolist(), kind)
    write_table(job.source, content.set_column(1, "embedding", column))

    transform(job, overwrite=False)

    embedding, _, _ = expected(vectors(pa.table({"e": column}), "e").astype(np.float32), drawn(SIDE, 100))
    np.testing.assert_allclose(vectors(read_table(job.output), "embedding").astype(np.float32), embedding, atol=1e-3)


@pytest.mark.parametrize("rows", [2, 4096, 4098])
def test_few_rows_and_whole_batches_are_upgraded_too(job: Job, rows: int) -> None:
    write_table(job.source, table(rows))

    assert transform(job, overwrite=False) == rows
    assert read_table(job.output).num_rows == rows


def test_an_array_is_upgraded_with_its_side_information_beside_it(job: Job, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", drawn(FROM))
    np.save(tmp_path / "side.npy", drawn(SIDE))
    job = Job(tmp_path / "in.npy", tmp_path / "out.npy", job.h, side_information=tmp_path / "side.npy")

    transform(job, overwrite=False)

    np.testing.assert_allclose(np.load(job.output), expected(drawn(FROM), drawn(SIDE))[0], atol=1e-5)
    assert left(job) == ["out.npy"]


@pytest.mark.parametrize("ids", [None, np.arange(ROWS)[::-1] * 3])
def test_a_flat_index_is_upgraded_and_keeps_its_ids_and_metric(job: Job, tmp_path: Path, ids: Any) -> None:
    np.save(tmp_path / "side.npy", drawn(SIDE))
    source = write_index(tmp_path / "in.faiss", ids)

    transform(Job(source, tmp_path / "out.faiss", job.h, side_information=tmp_path / "side.npy"), overwrite=False)

    index = faiss.read_index(str(tmp_path / "out.faiss"))
    embedding = expected(drawn(FROM), drawn(SIDE))[0]
    assert (index.ntotal, index.metric_type) == (ROWS, faiss.METRIC_INNER_PRODUCT)
    _, nearest = index.search(embedding[:50], 1)
    assert nearest[:, 0].tolist() == (np.arange(50) if ids is None else ids[:50]).tolist()


_RUN = """
import os, signal
from pathlib import Path
from edge.transforming import Job, Progress, transform

def die():
    os.kill(os.getpid(), signal.SIGKILL)

transform(
    Job(*map(Path, {paths})),
    False,
    Progress(lambda done, _: done >= {rows} and die(), lambda step: step == {step} and die(), sync_seconds=0),
)
"""


def run_until_killed(job: Job, rows: int = 2**60, step: int = 0) -> None:
    """Run in a process of its own, which dies when so many rows are done, or after a step."""
    paths = [str(path) for path in (job.source, job.output, job.h, job.g)]
    command = [sys.executable, "-c", _RUN.format(paths=paths, rows=rows, step=step)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("suffix", [".parquet", ".arrows"])
def test_a_run_that_was_killed_goes_on_and_its_output_has_a_name_only_when_it_is_whole(job: Job, suffix: str) -> None:
    whole = replace(job, output=job.output.with_name(f"whole{suffix}"))
    transform(whole, overwrite=False)
    job = replace(job, output=job.output.with_suffix(suffix))
    seen: list[int] = []

    for death in ({"rows": 1}, {"rows": 6_000}, {"step": 1}, {"step": 2}):
        run_until_killed(job, **death)
        assert not job.output.exists()
    run_until_killed(job, step=3)
    named = job.output.read_bytes()
    transform(job, overwrite=False, progress=Progress(lambda done, _all: seen.append(done)))

    assert seen == []
    assert left(job) == [job.output.name]
    assert job.output.read_bytes() == named
    assert read_table(job.output).equals(read_table(whole.output))


def test_rows_that_are_done_are_not_computed_again(job: Job) -> None:
    seen: list[int] = []
    run_until_killed(job, rows=5_000)
    with (job.output.with_name("out.parquet.unfinished") / "embedding").open("ab") as stream:
        stream.write(b"torn")

    transform(job, overwrite=False, progress=Progress(lambda done, _all: seen.append(done)))

    assert 5_000 <= seen[0] < seen[-1] == ROWS
    np.testing.assert_allclose(
        vectors(read_table(job.output), "embedding"), expected(drawn(FROM), drawn(SIDE))[0], atol=1e-5
    )


@pytest.mark.parametrize("change", ["input", "h", "damaged ledger", "a file lost"])
def test_work_that_belongs_to_something_else_begins_again(job: Job, change: str) -> None:
    run_until_killed(job, rows=5_000)
    seen: list[int] = []
    if change == "input":
        write_table(job.source, table(200))
    elif change == "h":
        write_networks(job.h.parent, normalize=False)
    elif change == "a file lost":
        (job.output.with_name("out.parquet.unfinished") / "uncertainty").unlink()
    else:
        (job.output.with_name("out.parquet.unfinished") / "progress.json").write_text("{")

    transform(job, overwrite=False, progress=Progress(lambda done, _all: seen.append(done)))

    assert seen[0] == 0
    assert read_table(job.output).num_rows == (200 if change == "input" else ROWS)


def test_two_runs_at_once_do_not_write_the_same_output(job: Job) -> None:
    def second(_done: int, _all: int) -> None:
        with pytest.raises(EdgeError, match="Another run"):
            transform(job, overwrite=False)

    transform(job, overwrite=False, progress=Progress(second))

    assert read_table(job.output).num_rows == ROWS


def test_an_output_that_exists_is_replaced_only_when_that_is_asked_for(job: Job) -> None:
    job.output.write_text("precious")

    with pytest.raises(EdgeError, match="--overwrite"):
        transform(job, overwrite=False)
    assert job.output.read_text() == "precious"
    transform(job, overwrite=True)

    assert read_table(job.output).num_rows == ROWS


def spoiled(rows: int, name: str, value: Any) -> pa.Table:
    """Return a table whose row 5,000 has another value in a column."""
    content = table(rows)
    values = content[name].to_pylist()
    values[5_000] = value
    return content.set_column(content.column_names.index(name), name, pa.array(values))


BAD_TABLES: dict[str, tuple[pa.Table, str]] = {
    "NaN": (spoiled(ROWS, "embedding", [float("nan")] * FROM), "row 5000 is not finite"),
    "a null vector": (spoiled(ROWS, "embedding", None), "Row 5000 has no 'embedding'"),
    "a vector of another length": (spoiled(ROWS, "embedding", [1.0]), "different lengths"),
    "no embedding": (table().drop_columns("embedding"), "has no 'embedding'"),
    "no side-information": (table().drop_columns("side_information"), "has no 'side_information'"),
    "another dimension": (
        table().set_column(1, "embedding", pa.array([[1.0] * 3] * ROWS)),
        "takes 'embedding' of 8 numbers",
    ),
    "whole numbers": (table().set_column(1, "embedding", pa.array([[1] * FROM] * ROWS)), "lists of floats"),
    "no rows": (table(0), "has no rows"),
    "of another version": (
        table().replace_schema_metadata({METADATA_KEY: b'{"model_version": "v9"}'}),
        "of model version 'v9'",
    ),
    "hops that are texts": (table().set_column(4, "hops", pa.array(["x"] * ROWS)), "whole numbers"),
    "hops that are full": (table().set_column(4, "hops", pa.array([127] * ROWS, pa.int8())), "cannot hold one hop"),
    "a column twice": (table().append_column("id", pa.array(["x"] * ROWS)), "several columns of one name"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_cannot_be_upgraded_is_refused_in_words_and_leaves_no_output(job: Job, name: str) -> None:
    content, sentence = BAD_TABLES[name]
    write_table(job.source, content)

    with pytest.raises(EdgeError, match=sentence):
        transform(job, overwrite=False)

    assert not job.output.exists()


def test_files_that_are_something_else_are_refused(job: Job, tmp_path: Path) -> None:
    stream = write_table(tmp_path / "in.arrows", table()).read_bytes()
    files = {
        "cut off": stream[:-8],
        "none of Parquet": b"hello, world",
        "cannot be read": b"PAR1" + bytes(100),
        "not a .npy": b"\x93NUMPY\x01\x00",
    }
    for sentence, content in files.items():
        job.source.write_bytes(content)
        with pytest.raises(EdgeError, match=sentence):
            transform(job, overwrite=False)
    np.save(tmp_path / "in.npy", drawn(FROM))
    np.save(tmp_path / "side.npy", drawn(SIDE))
    array = replace(job, source=tmp_path / "in.npy", g=None, side_information=tmp_path / "side.npy")
    for output, sentence in (("out.txt", "suffix"), ("out.parquet", "cannot become"), ("in.npy", "same file")):
        with pytest.raises(EdgeError, match=sentence):
            transform(replace(array, output=tmp_path / output), overwrite=True)
    with pytest.raises(EdgeError, match="has no 'side_information'"):
        transform(replace(array, output=tmp_path / "out.npy", side_information=None), overwrite=False)
    np.save(tmp_path / "side.npy", drawn(SIDE, 3))
    with pytest.raises(EdgeError, match="another number of rows"):
        transform(replace(array, output=tmp_path / "out.npy"), overwrite=False)


def test_networks_that_do_not_fit_are_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08nothing")
    (tmp_path / "foreign.onnx").write_bytes(onnx_matrix(normal(FROM, TO)))
    refused = {
        "ONNX Runtime can load": tmp_path / "bad.onnx",
        "--normalize or": tmp_path / "foreign.onnx",
        "was given as h": job.g,
    }
    for sentence, h in refused.items():
        assert h is not None
        with pytest.raises(EdgeError, match=sentence):
            transform(replace(job, h=h), overwrite=False)
    with pytest.raises(EdgeError, match="contradicts"):
        transform(replace(job, normalize=False), overwrite=False)


def test_a_foreign_network_of_one_input_upgrades_when_it_is_said_how(job: Job, tmp_path: Path) -> None:
    weights = normal(FROM, TO)
    (tmp_path / "foreign.onnx").write_bytes(onnx_matrix(weights))

    transform(replace(job, h=tmp_path / "foreign.onnx", g=None, normalize=False), overwrite=False)

    found = read_table(job.output)
    np.testing.assert_allclose(vectors(found, "embedding"), drawn(FROM) @ weights, atol=1e-4)
    assert "uncertainty" not in found.column_names


def test_the_papers_public_form_is_given_vectors_with_axes_of_one(job: Job, tmp_path: Path) -> None:
    weights = normal(TO, FROM)
    convolution = helper.make_node("Conv", ["x", "w"], ["y"])
    form = onnx_bytes([convolution], {"x": ["batch", FROM, 1, 1]}, ["y"], {"w": weights[:, :, None, None]})
    (tmp_path / "form.onnx").write_bytes(form)

    transform(replace(job, h=tmp_path / "form.onnx", g=None, normalize=False), overwrite=False)

    np.testing.assert_allclose(vectors(read_table(job.output), "embedding"), drawn(FROM) @ weights.T, atol=1e-4)
