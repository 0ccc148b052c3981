"""The file of an index of any kind, and what becomes of a damaged one."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from service.index.faiss_index import FaissIndex
from service.index.files import IndexFileError, build_index, load_index, save_index
from service.index.kinds import BuiltIndex
from service.index.protocol import Ids, IndexKind, Metric, Vectors
from tests.unit.index.building import KINDS, built, built_and_measured
from tests.unit.index.exhaustive import METRICS, assert_finds_the_nearest

DIM = 8


def some_rows(count: int, seed: int = 0) -> tuple[Ids, Vectors]:
    random = np.random.default_rng(seed)
    return random.permutation(count).astype(np.int64) * 2**40, random.standard_normal((count, DIM)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_answers_as_the_built_one_and_can_be_changed(
    tmp_path: Path, metric: Metric, kind: IndexKind
) -> None:
    ids, vectors = some_rows(3_000)
    before_saving, _ = built_and_measured(metric, ids, vectors, kind)
    queries = some_rows(5, seed=1)[1]

    digest = save_index(before_saving, tmp_path / "a.faiss")
    loaded = load_index(tmp_path / "a.faiss", metric, DIM, digest)

    for allowed in (None, ids[:10], ids[:2_500]):
        indexes = (FaissIndex(metric, DIM, before_saving), loaded)
        before, after = (index.search(queries, 10, allowed) for index in indexes)
        np.testing.assert_array_equal(after.ids, before.ids)
        np.testing.assert_array_equal(after.distances, before.distances)
    loaded.add(ids[:5], queries)
    loaded.remove(ids[5:])
    assert_finds_the_nearest(loaded, metric, dict(zip(ids[:5].tolist(), queries, strict=True)), queries, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["a.faiss"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_index_has_a_file_too(tmp_path: Path, kind: IndexKind) -> None:
    nothing = built("l2", *some_rows(0), kind)

    loaded = load_index(tmp_path / "a", "l2", DIM, save_index(nothing, tmp_path / "a"))

    assert_finds_the_nearest(loaded, "l2", {}, some_rows(2)[1], 3)


def test_a_search_leaves_its_thread_as_many_threads_to_build_with_as_before() -> None:
    ids, vectors = some_rows(50)
    index = FaissIndex("l2", DIM, build_index("l2", DIM, [(ids, vectors)], "flat"))
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)

        index.search(vectors, 3)

        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_or_altered_file_is_refused(tmp_path: Path, kind: IndexKind) -> None:
    path = tmp_path / "a.faiss"
    digest = save_index(built("l2", *some_rows(100), kind), path)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in [*range(200), *range(200, len(whole), 97), len(whole) - 1]]
    damaged += [whole + b"\0", os.urandom(1_000)]
    for at in range(0, len(whole), 211):
        damaged.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])

    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(IndexFileError, match=r"a\.faiss is damaged or of another build"):
            load_index(path, "l2", DIM, digest)


def test_a_missing_file_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_index(tmp_path / "a", "l2", DIM, "0" * 64)


def test_a_file_of_another_space_or_metric_is_refused(tmp_path: Path) -> None:
    digest = save_index(build_index("l2", DIM, [some_rows(10)], "flat"), tmp_path / "a")

    with pytest.raises(IndexFileError, match="not one of 9 dimensions"):
        load_index(tmp_path / "a", "l2", DIM + 1, digest)
    with pytest.raises(IndexFileError, match="metric ip"):
        load_index(tmp_path / "a", "ip", DIM, digest)


def test_what_faiss_cannot_read_is_an_unusable_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    faiss.write_index(faiss.IndexFlat(DIM), str(path))
    path.write_bytes(b"Ix??" + path.read_bytes()[4:])

    with pytest.raises(IndexFileError, match="cannot read"):
        load_index(path, "l2", DIM, _sha256(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_of_what_kind_it_is_and_how_wide_to_search_it(tmp_path: Path, kind: IndexKind) -> None:
    saved, _ = built_and_measured("l2", *some_rows(3_000), kind)

    save_index(saved, tmp_path / "a")

    loaded = BuiltIndex(faiss.read_index(str(tmp_path / "a"), faiss.IO_FLAG_MMAP_IFC)).rows
    assert loaded.kind == saved.rows.kind == kind
    assert loaded.parameters == saved.rows.parameters


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    faiss.write_index(faiss.IndexIDMap(faiss.IndexLSH(DIM, DIM)), str(path))

    with pytest.raises(IndexFileError, match="no kind"):
        load_index(path, "l2", DIM, _sha256(path))


def test_a_new_file_leaves_the_index_that_has_the_old_one_mapped_as_it_is(tmp_path: Path) -> None:
    (old_ids, old), (_, new) = some_rows(200), some_rows(3_000, seed=5)
    path = tmp_path / "a"
    mapped = load_index(path, "l2", DIM, save_index(build_index("l2", DIM, [(old_ids, old)], "flat"), path))

    save_index(build_index("l2", DIM, [(np.arange(3_000), new)], "flat"), path)

    assert_finds_the_nearest(mapped, "l2", dict(zip(old_ids.tolist(), old, strict=True)), new[:3], 4)


_DIE_IN_STEP = """
import os, signal, sys
from pathlib import Path
import numpy as np
from service.index.files import build_index, save_index
step, path = int(sys.argv[1]), Path(sys.argv[2])
calls = []
def dying(name, real):
    def call(*arguments, **keywords):
        result = real(*arguments, **keywords)
        calls.append(name)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
os.fsync, os.rename = dying("fsync", os.fsync), dying("rename", os.rename)
save_index(build_index("l2", 8, [(np.arange(50), np.ones((50, 8), np.float32))], "flat"), path)
"""


@pytest.mark.parametrize(("step", "is_published"), [(1, False), (2, True), (3, True)])
def test_a_kill_in_saving_leaves_a_whole_file_and_the_next_save_cleans_up(
    tmp_path: Path, step: int, is_published: bool
) -> None:
    """Killed after the fsync, after the rename, and after the folder's fsync."""
    path = tmp_path / "a.faiss"
    old = save_index(build_index("l2", DIM, [some_rows(20)], "flat"), path)

    process = subprocess.run([sys.executable, "-c", _DIE_IN_STEP, str(step), str(path)], check=False, timeout=60)

    assert process.returncode == -signal.SIGKILL
    now = _sha256(path)
    assert (now != old) == is_published
    assert len(load_index(path, "l2", DIM, now)) == (50 if is_published else 20)
    again = save_index(build_index("l2", DIM, [some_rows(30)], "flat"), path)
    assert len(load_index(path, "l2", DIM, again)) == 30
    assert [file.name for file in tmp_path.iterdir()] == ["a.faiss"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
