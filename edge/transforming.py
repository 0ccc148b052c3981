"""An upgrade of one file: what h and g give for its rows, beside its other columns.

The steps, in the folder `<OUT>.unfinished`, which one process at a time holds by a lock:
1. append what h and g give to plain files, one number after the other, and now and then make them durable and write in
   `progress.json` how many rows they have;
2. write the output, from the input's other columns and those files, and make it durable;
3. rename it to OUT, and make the name durable;
4. remove the folder.
A crash in 1 costs the rows since `progress.json` was written, one in 2 the output, which is written again; after 3 the
next run finds OUT and removes the folder. Work on another input, or by other networks, begins again from nothing.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError
from edge.networks import Network, Vectors, is_normalizing, load_network, scaled_to_unit_norm
from edge.outputs import Columns, Derived, kind_of_output, write_output
from edge.sources import TABLES, Source, in_equal_batches, open_source, said_of, vectors_of
from models.durable import sync_folder, write_atomically

_BATCH_ROWS = 4_096


@dataclass(frozen=True)
class Job:
    """What is asked for. `normalize` None is as h's file says; `side_information` is a .npy beside one, or beside an
    index of FAISS."""

    source: Path
    output: Path
    h: Path
    g: Path | None = None
    side_information: Path | None = None
    columns: Columns = field(default_factory=Columns)
    normalize: bool | None = None
    threads: int = 0


@dataclass(frozen=True)
class Upgrading:
    """A job whose files are open: rows in, rows out."""

    job: Job
    source: Source
    h: Network
    g: Network | None
    normalize: bool

    @property
    def reads(self) -> list[str]:
        """The columns of vectors that h and g need."""
        networks = [network for network in (self.h, self.g) if network is not None]
        needs_side = any(network.needs_side_information for network in networks)
        return [self.job.columns.embedding, *([self.job.columns.side_information] if needs_side else [])]

    def rows(self, batch: Any, first_row: int) -> tuple[NDArray[Any], NDArray[Any] | None, Vectors | None]:
        """Return what h and g give for a batch, in the numbers that are written (float16 where the embedding was, else
        float32), and the uncertainty. Raises `EdgeError`, naming the row, for values that are not finite or too large.
        """
        inputs = [vectors_of(batch.column(name), name, first_row) for name in self.reads]
        stored = np.float16 if inputs[0].dtype == np.float16 else np.float32
        given = [np.ascontiguousarray(values, np.float32) for values in inputs]
        side = given[1] if len(given) == 2 else None
        embedding, uncertainty = self.h(given[0], side)
        if self.normalize:
            embedding = scaled_to_unit_norm(embedding)
        side_information = None if self.g is None else _as_stored(self.g(given[0], side)[0], stored, "g", first_row)
        return _as_stored(embedding, stored, "h", first_row), side_information, uncertainty


def open_job(job: Job) -> Upgrading:
    """Open the files of a job and check that they fit together. Raises `EdgeError`."""
    source = open_source(job.source, job.side_information)
    h = load_network(job.h, job.threads)
    g = None if job.g is None else load_network(job.g, job.threads)
    upgrading = Upgrading(job, source, h, g, is_normalizing(h, job.normalize))
    names = source.schema.names
    if len(set(names)) != len(names):
        raise EdgeError(f"{job.source} has several columns of one name.")
    for name in upgrading.reads:
        if name not in names:
            raise EdgeError(f"{job.source} has no {name!r}, which h or g needs; it has {', '.join(names)}.")
    if source.rows == 0:
        raise EdgeError(f"{job.source} has no rows.")
    if g is not None and source.kind not in TABLES:
        raise EdgeError(
            "What g gives has no place in a .npy or an index: run the command again with --h g.onnx for it."
        )
    version, expected = said_of(source.schema).get("model_version"), h.about.get("from_version")
    if None not in (version, expected) and version != expected:
        raise EdgeError(f"The rows are of model version {version!r}; {job.h} leads from {expected!r}.")
    for part, network in (("h", h), ("g", g)):
        if network is not None and network.about.get("part", part) != part and source.kind in TABLES:
            raise EdgeError(f"{network.path} is {network.about['part']}, and was given as {part}.")
    return upgrading


@dataclass(frozen=True)
class Progress:
    """What is called while a file is upgraded: `rows` with how many of how many are done, `after` with each numbered
    step but the last; and how often rows are made durable."""

    rows: Callable[[int, int], object] = lambda _done, _all: None
    after: Callable[[int], object] = lambda _step: None
    sync_seconds: float = 2.0


def transform(job: Job, overwrite: bool, progress: Progress = Progress()) -> int:
    """Upgrade a file, or go on where a run that was killed stopped, and return how many rows it has.

    Raises `EdgeError`, and leaves no output then.
    """
    if job.output.exists() and job.output.samefile(job.source):
        raise EdgeError("IN and OUT are the same file.")
    upgrading = open_job(job)
    kind = kind_of_output(job.output, upgrading.source)
    folder = job.output.with_name(f"{job.output.name}.unfinished")
    identity = _identity(upgrading)
    if job.output.exists() and not overwrite and not _is_named(folder, identity):
        raise EdgeError(f"{job.output} exists; give --overwrite to replace it.")
    with _held(folder):
        if job.output.exists() and not overwrite:
            _remove(folder)  # 4. of a run that was killed just before
            return upgrading.source.rows
        work = _Work(folder, identity)
        _derive(upgrading, work, progress)  # 1.
        progress.after(1)
        derived = work.derived(upgrading)
        part = folder / "output"
        write_output(part, kind, upgrading.source, job.columns, derived)  # 2.
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        progress.after(2)
        if _identity(upgrading) != identity:
            raise EdgeError(f"{job.source} was changed while it was read; run the command again.")
        work.say(named=True)
        part.rename(job.output)  # 3.
        sync_folder(job.output.parent)
        progress.after(3)
        _remove(folder)  # 4.
    return upgrading.source.rows


def _is_named(folder: Path, identity: dict[str, Any]) -> bool:
    """Return whether a run of the same job was killed after its output got its name."""
    found = _progress(folder)
    return bool(found.get("named")) and found["identity"] == identity and not (folder / "output").exists()


def _remove(folder: Path) -> None:
    """Remove the folder; what says that the output has its name goes last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "progress.json"):
        path.unlink()
    folder.rmdir()


def _derive(upgrading: Upgrading, work: "_Work", progress: Progress) -> None:
    source = upgrading.source
    progress.rows(work.rows, source.rows)
    for batch in in_equal_batches(source.batches(upgrading.reads, work.rows, _BATCH_ROWS), _BATCH_ROWS):
        work.append(*upgrading.rows(batch, work.rows))
        if time.monotonic() - work.synced_at > progress.sync_seconds:
            work.sync()
        progress.rows(work.rows, source.rows)
    work.sync()
    if work.rows != source.rows:
        raise EdgeError(f"{upgrading.job.source} was to have {source.rows} rows; {work.rows} could be read.")


class _Work:
    """The plain files of step 1, and how far they are."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._identity = identity
        found = _progress(folder)
        if found.get("identity") != identity or not _is_whole(folder, found):
            for path in folder.iterdir():
                if path.name != "lock":
                    path.unlink()
            found = {}
        self.rows: int = found.get("rows", 0)
        self._widths: dict[str, list[Any]] = found.get("widths", {})  # dtype and numbers a row, by name
        self._files: dict[str, BinaryIO] = {}
        for name in self._widths:
            self._open(name).truncate(self.rows * _row_bytes(self._widths[name]))
        self.synced_at = time.monotonic()

    def append(
        self, embedding: NDArray[Any], side_information: NDArray[Any] | None, uncertainty: Vectors | None
    ) -> None:
        parts = {"embedding": embedding, "side_information": side_information, "uncertainty": uncertainty}
        for name, values in parts.items():
            if values is None:
                continue
            if name not in self._files:
                self._widths[name] = [values.dtype.name, values.shape[1] if values.ndim == 2 else 1]
                self._open(name).truncate(0)
            self._files[name].write(np.ascontiguousarray(values).data)
        self.rows += len(embedding)

    def sync(self) -> None:
        """Make what was appended durable, and then say so."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        self.say(named=False)
        self.synced_at = time.monotonic()

    def say(self, *, named: bool) -> None:
        content = {"identity": self._identity, "rows": self.rows, "widths": self._widths, "named": named}
        write_atomically(self._folder / "progress.json", lambda part: part.write_text(json.dumps(content)))

    def derived(self, upgrading: Upgrading) -> Derived:
        """Return what is in the files, and what the output says of itself."""
        values = {name: self._mapped(name) for name in self._widths}
        said: dict[str, Any] = {
            "model_version": upgrading.h.about.get("to_version"),
            "h_sha256": upgrading.h.digest,
            "g_sha256": None if upgrading.g is None else upgrading.g.digest,
        }
        for name in ("embedding", "side_information"):
            if name in values:
                said[f"{name}_sha256"] = checksum(values[name][at : at + _BATCH_ROWS] for at in _starts(self.rows))
        expected = values.get("uncertainty")
        return Derived(
            values["embedding"],
            values.get("side_information"),
            None if expected is None else expected.reshape(-1),
            said,
        )

    def _open(self, name: str) -> BinaryIO:
        stream = (self._folder / name).open("ab")
        self._files[name] = stream
        return stream

    def _mapped(self, name: str) -> NDArray[Any]:
        dtype, width = self._widths[name]
        return np.memmap(self._folder / name, np.dtype(dtype), "r", shape=(self.rows, width))


def checksum(parts: Iterator[NDArray[Any]]) -> str:
    """Return the SHA-256, in hex, of vectors' bytes, row after row."""
    digest = hashlib.sha256()
    for values in parts:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _starts(rows: int) -> range:
    return range(0, rows, _BATCH_ROWS)


def _as_stored(values: Vectors, stored: type, network: str, first_row: int) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        converted: NDArray[Any] = values.astype(stored)
    finite = np.isfinite(converted).all(axis=1)
    if not finite.all():
        row = first_row + int(np.argmin(finite))
        raise EdgeError(f"What {network} gives for row {row} is not finite, or too large for {np.dtype(stored).name}.")
    return converted


def _identity(upgrading: Upgrading) -> dict[str, Any]:
    """Return what rows in the folder belong to: these files, read in this way."""
    job = upgrading.job
    files = [job.source] if job.side_information is None else [job.source, job.side_information]
    return {
        "files": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "h": upgrading.h.digest,
        "g": None if upgrading.g is None else upgrading.g.digest,
        "reads": upgrading.reads,
        "normalize": upgrading.normalize,
    }


def _progress(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _row_bytes(width: list[Any]) -> int:
    return int(np.dtype(width[0]).itemsize * width[1])


def _is_whole(folder: Path, found: dict[str, Any]) -> bool:
    """Return whether the files hold as many rows as was said."""
    due = {folder / name: found["rows"] * _row_bytes(width) for name, width in found["widths"].items()}
    return all(path.exists() and path.stat().st_size >= size for path, size in due.items())


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Have the folder to oneself; a crash frees it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EdgeError(f"Another run is writing this output ({folder}).") from error
        yield
