"""What is said of a gallery that lives in files."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gallery_upgrade.arrays import vectors_table
from gallery_upgrade.examining import Findings, add_store, examine


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


def of_model(rows: int, seed: int, dim: int = 64) -> NDArray[np.float64]:
    """Return embeddings as a model gives them: in a cone around a direction of its own, in some classes."""
    generator = np.random.default_rng(seed)
    classes = generator.normal(size=(10, dim)) * 0.5
    vectors = 3 * generator.normal(size=dim) / 2 + classes[generator.integers(0, 10, rows)]
    vectors += generator.normal(size=(rows, dim)) * 0.5
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def examined(vectors: NDArray[np.float64]) -> Findings:
    return examine([vectors_table([str(row) for row in range(len(vectors))], vectors.astype(np.float32), None)])


@pytest.mark.parametrize("seed", range(5))
def test_vectors_of_two_models_are_two_clouds_and_those_of_one_are_not(seed: int) -> None:
    one, other = of_model(1_000, seed), of_model(200, seed + 100)

    mixed = examined(np.concatenate([one, other]))

    assert examined(one).clouds == 1
    assert mixed.clouds == 2
    assert mixed.smaller_cloud == pytest.approx(200 / 1_200)
    assert any("most likely of two models" in sentence for sentence in mixed.advice)


def test_one_cloud_without_any_structure_is_one() -> None:
    assert examined(np.random.default_rng(0).normal(size=(3_000, 16))).clouds == 1
    assert examined(np.random.default_rng(0).normal(size=(3_000, 1))).clouds == 1


def test_two_kinds_of_norms_are_two_clouds() -> None:
    vectors = np.random.default_rng(0).normal(size=(1_000, 64))
    vectors[300:] /= np.linalg.norm(vectors[300:], axis=1, keepdims=True)

    found = examined(vectors)

    assert found.clouds == 2
    assert found.smaller_cloud == pytest.approx(0.3)


def test_two_clouds_are_found_however_many_tables_come_before() -> None:
    vectors = np.concatenate([of_model(9_000, 0), of_model(1_000, 1)]).astype(np.float32)
    table = vectors_table([str(row) for row in range(10_000)], vectors, None)

    found = examine([table.slice(start, 700) for start in range(0, 10_000, 700)])

    assert found.clouds == 2
    assert found.smaller_cloud == pytest.approx(0.1, abs=0.02)


def test_what_a_store_says_is_told_with_what_an_upgrade_of_it_needs() -> None:
    found = examined(of_model(100, 0))
    description = {
        "rows": 100,
        "embedding_dim": 64,
        "side_information_dim": None,
        "dtype": "float16",
        "notices_writes": False,
        "warning": "It is a sample.",
    }

    add_store(found, description, ["Row 7 is not finite."], 0.25)

    assert found.advice[-5:] == [
        "Row 7 is not finite.",
        "An upgrade of it where it is needs model versions of 64 numbers, and a transformation from theirs to a new"
        " one.",
        "It costs 200 bytes in the store for every number of the new embedding, and reads it three times, which took"
        " 0.2 s once from here.",
        "The store does not say what is written meanwhile: pause writes for the cutover.",
        "It is a sample.",
    ]
