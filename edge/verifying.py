"""Whether a file is what an upgrade of another one gives: every count, every other column and every checksum, and a
sample of the vectors, computed again."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from edge.errors import EdgeError
from edge.outputs import TRANSFORMED, kept_columns
from edge.sources import TABLES, FlatIndex, Source, open_source, said_of, vectors_of
from edge.transforming import Job, Upgrading, checksum, open_job

_BATCH_ROWS = 4_096
# How far rows may lie from what is computed again, as a share of their length: rounding, of sums and as stored.
_TOLERANCE = {"float16": 2e-3, "float32": 1e-4}
_MOST_DIFFERENCES = 20


def verify(job: Job, sample: int, seed: int) -> list[str]:
    """Return how `job.output` differs from what the job gives, in sentences; none where it does not.

    `sample` rows are computed again, drawn by `seed`. Raises `EdgeError` for files that cannot be compared.
    """
    upgrading = open_job(job)
    found = open_source(job.output)
    if (found.kind in TABLES) != (upgrading.source.kind in TABLES):
        raise EdgeError(f"{job.output} is of kind {found.kind} and {job.source} of kind {upgrading.source.kind}.")
    differences = [*_of_shape(upgrading, found)]
    if differences:
        return differences
    rows = np.random.default_rng(seed).choice(found.rows, min(sample, found.rows), replace=False)
    comparison = _Comparison(upgrading, found, np.sort(rows))
    return [*comparison.of_rows(), *_of_checksums(upgrading, found)][:_MOST_DIFFERENCES]


def _of_shape(upgrading: Upgrading, found: Source) -> Iterator[str]:
    source, columns = upgrading.source, upgrading.job.columns
    if found.rows != source.rows:
        yield f"OUT has {found.rows} rows; IN has {source.rows}."
    if isinstance(source, FlatIndex) and isinstance(found, FlatIndex):
        before, after = source.ids, found.ids
        if (before is None) != (after is None) or not (
            before is None or after is None or np.array_equal(before, after)
        ):
            yield "The ids of the indexes differ."
        if source.metric != found.metric:
            yield "The metrics of the indexes differ."
    expected = [*kept_columns(source, columns), columns.embedding]
    if source.kind in TABLES:
        expected += ["origin", "hops", *([columns.side_information] if upgrading.g is not None else [])]
    for name in expected:
        if name not in found.schema.names:
            yield f"OUT has no column {name!r}."
    for name in found.schema.names:
        if name not in expected and name != "uncertainty":
            yield f"OUT has a column {name!r}, which the upgrade does not give."


class _Comparison:
    """Both files, read side by side."""

    def __init__(self, upgrading: Upgrading, found: Source, sample: NDArray[np.int64]) -> None:
        self._upgrading, self._found, self._sample = upgrading, found, sample
        self._kept = kept_columns(upgrading.source, upgrading.job.columns)

    def of_rows(self) -> Iterator[str]:
        """Give the differences of rows, each of the first batch that has it."""
        source, found = self._upgrading.source, self._found
        reads = [*self._kept, *self._upgrading.reads, *(["hops"] if "hops" in source.schema.names else [])]
        at, said = 0, set()
        for before, after in _side_by_side(
            source.batches(reads, 0, _BATCH_ROWS), found.batches(found.schema.names, 0, _BATCH_ROWS)
        ):
            for what, difference in self._of_batch(before, after, at):
                if what not in said:
                    said.add(what)
                    yield difference
            at += len(before)

    def _of_batch(self, before: pa.RecordBatch, after: pa.RecordBatch, at: int) -> Iterator[tuple[str, str]]:
        for name in self._kept:
            if not _are_same(before.column(name), after.column(name)):
                yield name, f"The column {name!r} differs within rows {at} to {at + len(before) - 1}."
        if self._found.kind in TABLES:
            yield from _of_provenance(before, after, at)
        chosen = self._sample[np.searchsorted(self._sample, at) : np.searchsorted(self._sample, at + len(before))] - at
        if len(chosen):
            yield from self._of_vectors(before.take(pa.array(chosen)), after.take(pa.array(chosen)), chosen + at)

    def _of_vectors(
        self, before: pa.RecordBatch, after: pa.RecordBatch, rows: NDArray[np.int64]
    ) -> Iterator[tuple[str, str]]:
        columns = self._upgrading.job.columns
        embedding, side_information, uncertainty = self._upgrading.rows(before, int(rows[0]))
        expected = {columns.embedding: embedding, columns.side_information: side_information}
        for name, values in expected.items():
            if values is not None:
                yield from _apart(name, vectors_of(after.column(name), name, int(rows[0])), values, rows)
        if uncertainty is not None and "uncertainty" in after.schema.names:
            found = after.column("uncertainty").to_numpy(zero_copy_only=False).astype(np.float32)[:, None]
            yield from _apart("uncertainty", found, uncertainty[:, None], rows)


def _are_same(before: pa.Array, after: pa.Array) -> bool:
    """Return whether two columns hold the same; a format may not have the other's type, as Parquet has no seconds."""
    try:
        return bool(before.equals(after.cast(before.type)))
    except pa.ArrowException:
        return False


def _of_provenance(before: pa.RecordBatch, after: pa.RecordBatch, at: int) -> Iterator[tuple[str, str]]:
    origins = after.column("origin")
    if not pc.all(pc.fill_null(pc.equal(origins, TRANSFORMED), False)).as_py():
        yield "origin", f"Rows from {at} on have another origin than {TRANSFORMED!r}."
    hops = pc.fill_null(before.column("hops"), 0) if "hops" in before.schema.names else pa.array([0] * len(before))
    if not pc.add(hops.cast(pa.int64()), 1).equals(after.column("hops").cast(pa.int64())):
        yield "hops", f"Rows from {at} on do not have one hop more than before."


def _apart(
    name: str, found: NDArray[Any], expected: NDArray[Any], rows: NDArray[np.int64]
) -> Iterator[tuple[str, str]]:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        yield (
            name,
            f"{name!r} has rows of {found.shape[1]} {found.dtype}; {expected.shape[1]} {expected.dtype} are due.",
        )
        return
    first, second = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(second, axis=1)
    distances = np.linalg.norm(first - second, axis=1)
    bad = ~(distances <= _TOLERANCE[expected.dtype.name] * np.maximum(lengths, 1e-6))
    if bad.any():
        row = int(np.argmax(bad))
        yield (
            name,
            f"{name!r} of row {rows[row]} lies {distances[row]:.3g} from what h or g gives ({lengths[row]:.3g} long).",
        )


def _of_checksums(upgrading: Upgrading, found: Source) -> Iterator[str]:
    """Compare what a table says of itself with what it holds, and with the networks."""
    said, columns = said_of(found.schema), upgrading.job.columns
    networks = {"h": upgrading.h.digest, "g": None if upgrading.g is None else upgrading.g.digest}
    for name, digest in networks.items():
        if found.kind in TABLES and said.get(f"{name}_sha256") != digest:
            yield f"OUT was made by another {name} than the one given (SHA-256 {said.get(f'{name}_sha256')})."
    for key, name in (("embedding", columns.embedding), ("side_information", columns.side_information)):
        expected = said.get(f"{key}_sha256")
        if expected is not None and expected != vectors_checksum(found, name):
            yield f"The vectors of {name!r} do not have the checksum that OUT says they have."


def vectors_checksum(source: Source, name: str) -> str:
    """Return the SHA-256 of a column of vectors."""
    batches = source.batches([name], 0, _BATCH_ROWS)
    return checksum(vectors_of(batch.column(name), name, 0) for batch in batches if len(batch))


def _side_by_side(*sources: Iterator[pa.RecordBatch]) -> Iterator[Sequence[pa.RecordBatch]]:
    """Give batches of equally many rows, in step."""
    current: list[pa.RecordBatch | None] = [None] * len(sources)
    while True:
        for number, source in enumerate(sources):
            while (batch := current[number]) is None or not len(batch):
                following = next(source, None)
                if following is None:
                    return
                current[number] = following
        count = min(len(batch) for batch in current if batch is not None)
        yield [batch.slice(0, count) for batch in current if batch is not None]
        current = [batch.slice(count) for batch in current if batch is not None]
