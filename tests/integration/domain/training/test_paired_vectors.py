"""Pairs of features from which nothing can be learned."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.paired_vectors import ROWS, paired_columns, parquet
from tests.trainings import ask, check_refused


def changed(**columns: Any) -> bytes:
    """Return pairs with some columns replaced, or left away where they are None."""
    return parquet({name: values for name, values in (paired_columns() | columns).items() if values is not None})


def with_value(name: str, value: float) -> bytes:
    values = paired_columns()[name]
    values[-1, -1] = value
    return changed(**{name: values})


BAD_PAIRS: dict[str, tuple[int, bytes, str]] = {
    "not Parquet": (415, b"not Parquet at all", "readable Parquet"),
    "cut off": (415, parquet(paired_columns())[:-40], "readable Parquet"),
    "too few": (422, parquet({name: values[:99] for name, values in paired_columns().items()}), "at least 100 rows"),
    "NaN": (422, with_value("embedding_to", np.nan), "not finite"),
    "infinite side-information": (422, with_value("side_information_from", np.inf), "not finite"),
    "too short": (422, changed(embedding_from=paired_columns()["embedding_from"][:, :5]), "5 numbers"),
    "too long": (422, changed(embedding_to=np.zeros((ROWS, 9), np.float32)), "longer than the 8 numbers"),
    "no target": (422, changed(embedding_to=None), "'embedding_to' is missing"),
    "nothing for g": (422, changed(side_information_to=None), "g learns from it"),
    "unknown columns": (422, changed(extra=[1] * ROWS, more=[2] * ROWS), "Drop the others: extra, more."),
    "an Arrow file": (415, b"ARROW1\0\0" + bytes(50), "Write the same table with pyarrow.parquet.write_table"),
    "an Arrow stream": (415, b"\xff\xff\xff\xff" + bytes(50), "a training reads Parquet"),
    "some labels": (422, changed(label=["a", None] * (ROWS // 2)), "nulls"),
    "labels of lists": (422, changed(label=[["a"]] * ROWS), "strings or whole numbers"),
    "numbers for vectors": (422, changed(embedding_from=[1.0] * ROWS), "lists of floats"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs_are_refused_with_a_sentence_and_nothing_is_stored(
    versions: TestClient, settings: Settings, name: str
) -> None:
    status, pairs, sentence = BAD_PAIRS[name]

    answer = ask(versions, pairs, with_g=True)

    check_refused(versions, settings, answer, status, sentence)
