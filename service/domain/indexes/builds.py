"""Building a generation's index as a job, whatever engine holds it: of an upgrade's next generation, so that replicas
load it ahead of the cutover, and of any other when `service.domain.indexes.due` says so."""

import time
from collections.abc import Callable, Iterable, Iterator

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.db import Database
from service.domain.gallery.generations import GenerationKey
from service.domain.generation_stage import STORED
from service.domain.indexes.engine import Build, IndexEngine, Report
from service.domain.jobs import (
    INDEX_BUILD,
    BuildProgress,
    end_jobs_left_running,
    fail_job,
    record_progress,
    start_job,
    succeed_job,
    withdraw_job,
)
from service.index.protocol import Ids, Vectors
from service.index.served import GenerationGone
from service.tables import Generation, Json

_PROGRESS_SECONDS = 1.0
GivesWay = Callable[[Session], bool]


class GaveWay(Exception):
    """Something more urgent needs the worker; the build is begun again later."""


def build_generation_index(
    database: Database,
    engine: IndexEngine,
    generation: GenerationKey,
    *,
    upgrade_id: int | None = None,
    gives_way: GivesWay | None = None,
    only_width: bool = False,
) -> Json:
    """Build and name the generation's index; return what was recorded about it.

    With `only_width`, the rows of the index that is there stay, unless it cannot be read.

    Running it twice gives the same row: the second index replaces the first in one step. Its job records a failure.
    One process builds at a time (hold the upgrade's phase lock, or without an upgrade the rebuild lock), so a job that
    still seems to run is one whose process died. Raises `GenerationGone` soon after the generation was dropped, and
    `GaveWay` soon after `gives_way` says so.
    """
    with database.session_scope() as session:
        end_jobs_left_running(session, generation.generation_id)
        job_id = start_job(session, INDEX_BUILD, generation.gallery_id, generation.generation_id, upgrade_id)
    try:
        return engine.build(Build(generation, job_id, only_width, _JobProgress(database, job_id, gives_way)))
    except GaveWay as error:
        with database.session_scope() as session:
            withdraw_job(session, job_id, str(error))
        raise
    except Exception as error:
        with database.session_scope() as session:
            fail_job(session, job_id, f"{type(error).__name__}: {error}")
        raise


def name_index(
    session: Session,
    generation_id: int,
    name: str,
    sha256: str | None,
    revision: int,
    recorded: Json,
) -> None:
    """Name the index in the generation's row, unless that was dropped: it holds every row that was current at
    `revision`. `sha256` is that of a file."""
    session.execute(
        update(Generation)
        .where(Generation.id == generation_id, Generation.state.in_(STORED))
        .values(index_name=name, index_sha256=sha256, index_revision=revision, index_parameters=recorded)
    )


def end_build(session: Session, build: Build, recorded: Json) -> None:
    """Let the build's job succeed. Raises `GenerationGone` when it was ended meanwhile."""
    if not succeed_job(session, build.job_id, recorded):
        raise GenerationGone(f"The index of generation {build.generation.generation_id} is not wanted any more.")


def counted(rows: Iterable[tuple[Ids, Vectors]], total: int, progress: Report) -> Iterator[tuple[Ids, Vectors]]:
    """Give the rows, and report how many of them are in the index by then."""
    done = 0
    for ids, vectors in rows:
        yield ids, vectors
        done += len(ids)
        progress(done, total)


class _JobProgress:
    """Records, about once a second, how many rows the index has, and stops a build that nobody wants any more, or one
    that gives way to something more urgent."""

    def __init__(self, database: Database, job_id: int, gives_way: GivesWay | None) -> None:
        self._database = database
        self._job_id = job_id
        self._gives_way = gives_way
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PROGRESS_SECONDS
        with self._database.session_scope() as session:
            if not record_progress(session, self._job_id, BuildProgress(done, total)):
                raise GenerationGone("The generation was dropped.")
            if self._gives_way is not None and self._gives_way(session):
                raise GaveWay("It gave way to an upgrade, and is begun again when that needs no worker.")
