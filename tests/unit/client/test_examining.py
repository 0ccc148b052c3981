"""What is said of a gallery that lives in files."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gallery_upgrade.arrays import vectors_table
from gallery_upgrade.examining import examine


def unit_rows(rows: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(0).normal(size=(rows, 8))
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_a_sound_gallery_is_said_to_be_one_however_it_is_cut() -> None:
    table = vectors_table([str(row) for row in range(100)], unit_rows(100), unit_rows(100))

    whole = examine([table])
    parts = examine([table.slice(0, 33), table.slice(33)])

    assert whole == parts
    assert (whole.rows, whole.dimensions, whole.unit_norm, whole.refused) == (100, {8: 100}, 100, False)
    assert (whole.zero, whole.duplicate_vectors, whole.duplicate_ids, whole.lost_in_float16) == (0, 0, 0, 0)
    assert whole.advice == ["All vectors have norm 1: cosine, l2 and ip order neighbours alike."]


def test_every_fault_is_counted_and_told() -> None:
    vectors = unit_rows(20)
    vectors[0] = 0
    vectors[1, 3] = np.nan
    vectors[2, 3] = np.inf
    vectors[3] = vectors[4]
    vectors[5] *= 1e6
    vectors[6] *= 1e-7
    ids = ["twice", *map(str, range(18)), "twice"]

    found = examine([vectors_table(ids[:10], vectors[:10], None), vectors_table(ids[10:], vectors[10:], None)])

    assert (found.zero, found.not_finite, found.duplicate_vectors, found.duplicate_ids) == (1, 2, 1, 1)
    assert found.lost_in_float16 == 2
    assert found.refused
    assert len(found.advice) == 6  # these five, and that there is no side-information


def test_rows_of_several_dimensions_are_told() -> None:
    table = pa.table({"id": ["a", "b", "c"], "embedding": [[1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0]]})

    found = examine([table])

    assert found.dimensions == {2: 2, 3: 1}
    assert found.refused
    assert found.advice[0].startswith("Rows have several dimensions [2, 3]")


def test_a_table_without_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="embedding is missing"):
        examine([pa.table({"id": ["a"]})])
    assert examine([]).advice == ["There are no rows."]
