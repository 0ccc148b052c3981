"""The work of an erasure, gallery by gallery, each step in a transaction that counts it; after a death, the step that
was not counted is taken again, and finds what is left.

1. `rows`: count and remove the rows of the items, or of the gallery with its tables; keep what the next steps need of
   them (crash point `erasure.rows`).
2. `stragglers`: wait until no batch of an open upgrade is in flight that read the rows before, and remove what those
   have written since (`erasure.stragglers`).
3. `indexes`: while nobody builds one, have every index built anew that was built before the rows went, or have the
   items taken out of it where an index takes changes; remove the files and the tables that nothing needs any more
   (`erasure.indexes`).
4. `images`: remove the images of queries that no other row refers to (`erasure.images`).
When all galleries are done:
5. count what is there by now, and forget the ids (`erasure.counted`);
6. vacuum the tables, so that the space of the rows is free for others (`erasure.vacuumed`);
7. end the job with its proof, and audit that.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from service import identity, logs
from service.advisory_locks import AdvisoryLock, hold
from service.audit import Act, Subject, record
from service.blobs import BlobStore
from service.crash_points import crash_point
from service.db import Database
from service.domain.erasure.places import (
    ITEMS,
    OWN_QUERIES,
    Place,
    blank_sentences,
    generation_places,
    places_of_gallery,
    places_of_items,
)
from service.domain.erasure.proof import ErasureRequest, Found, FoundPlace, erasing
from service.domain.gallery.galleries import delete_gallery, find_open_upgrade, lock_gallery
from service.domain.gallery.generations import GenerationKey
from service.domain.gallery.writes import delete_items
from service.domain.generation_stage import STORED
from service.domain.indexes.builds import build_generation_index
from service.domain.indexes.engine import IndexEngine
from service.domain.indexes.removal import remove_dropped
from service.domain.job_state import UNFINISHED, WORKING, JobAction
from service.domain.jobs import TRAINING, change_jobs, end_jobs_left_running, succeed_job
from service.domain.registry.blobs import delete_unreferenced_blobs
from service.errors import Unavailable
from service.tables import Erasure, Gallery, Generation, Item, Job, Json, JudgedQuery, QuerySet

events = logs.Events(__name__)

_LEFT = {
    "PostgreSQL's files": (
        "Rows that were deleted are vacuumed: their bytes are free space until other rows take it, and in the"
        " write-ahead log until that is recycled. VACUUM FULL rewrites a table at once, while nobody else can use it."
    ),
    "backups": "Copies of the database, of the blob store and of the data folder keep everything; none is known here.",
    "API processes": (
        "They hold a replaced index, in memory and in their copies of a remote blob store's files, until they have"
        " loaded the new one; a query that was asked just before is written as a sample within 10 seconds. What they"
        " keep in memory of what answers said of items is never said again, and forgotten when the gallery is asked."
    ),
    "logs": "What was written to them stays, the server's own among them; few lines name an item.",
    "exports": "None is kept here; whoever has taken one has it.",
    "images and data sets elsewhere": "GALLERY_IMAGES and GALLERY_DATASETS lead to what is read, and not kept here.",
    "networks": "What φ, ψ, h and g learned from images or vectors stays in them.",
}
_TRAININGS = "Their rows have no ids, so whose they are is not known; they are removed when the trainings end."
_SHARED = "Other queries are the same image."


class IndexBusy(Unavailable):
    """An index is being built; the erasure waits for that."""


@dataclass(frozen=True)
class EraserParts:
    """What the work is done with; `wait_seconds` is how long a table that is still read is waited for."""

    database: Database
    blobs: BlobStore
    engine: IndexEngine
    wait_seconds: float


def advance_erasure(parts: EraserParts, job_id: int) -> bool:
    """Take the next step of an erasure, alone; return whether there is another one.

    Raises `GalleryBusy` (409) for a whole gallery of which work was begun since; and what removing raises while
    something is in use or away (`IndexBusy`, for one): the step is to be taken again.
    """
    with parts.database.session_scope() as session:
        job = session.get(Job, job_id)
        if job is None or job.state not in WORKING:
            return False
        change_jobs(session, Job.id == job_id, JobAction.BEGIN)
        target = _next_target(session, job_id)
    if target is None:
        _end(parts.database, job_id)
        return False
    _STEPS[target.step](parts, target)
    return True


def record_trouble(session: Session, job_id: int, sentence: str) -> None:
    """Say why an erasure does not get on; it is tried again."""
    session.get_one(Job, job_id).error = sentence


def _next_target(session: Session, job_id: int) -> Erasure | None:
    query = select(Erasure).where(Erasure.job_id == job_id, Erasure.step < len(_STEPS))
    return session.scalar(query.order_by(Erasure.gallery_id).limit(1))


def _rows(parts: EraserParts, target: Erasure) -> None:
    """Do step 1."""
    with parts.database.session_scope() as session:
        gallery = session.get(Gallery, target.gallery_id)
        if gallery is None:  # it went since, with all that it had
            _count_step(session, target, [])
        elif target.names is None:
            _remove_gallery(session, target, gallery)
        else:
            _remove_items(session, target, gallery)
    crash_point("erasure.rows")


def _remove_gallery(session: Session, target: Erasure, gallery: Gallery) -> None:
    parameters = _parameters(target)
    images = select(JudgedQuery.image_digest).join(QuerySet).where(QuerySet.gallery_id == gallery.id)
    target.image_digests = [digest for digest in session.scalars(images) if digest is not None]
    named = select(func.count()).where(Generation.gallery_id == gallery.id, Generation.index_name.is_not(None))
    indexes = session.scalar(named) or 0
    places = places_of_gallery(session, gallery.id)
    found = [_found(target, place.name, place.count(session, parameters)) for place in places]

    for place in places:
        if place.name == "idempotency_keys":  # which name the gallery, and do not go with it
            place.remove(session, parameters)
    with identity.acting_for(gallery.tenant):
        delete_gallery(session, gallery.name)
    _count_step(session, target, [*found, _found(target, "indexes", indexes)])


def _remove_items(session: Session, target: Erasure, gallery: Gallery) -> None:
    lock_gallery(session, gallery.id)  # so that no item comes while they are looked for
    names = target.names or []
    items = session.execute(
        select(Item.id, Item.external_id, Item.deleted_at.is_(None), Item.thumbnail.is_not(None)).where(
            Item.gallery_id == gallery.id, Item.external_id.in_(names)
        )
    ).all()
    target.item_ids = [id_ for id_, *_ in items]
    parameters = _parameters(target)
    own = text(f"SELECT DISTINCT t.image_digest FROM judged_queries t WHERE {OWN_QUERIES.where}")
    target.image_digests = [digest for digest in session.scalars(own, parameters) if digest is not None]

    removed = {place.name: place.remove(session, parameters) for place in places_of_items(session, gallery.id)}
    removed["sentences of errors"] = blank_sentences(session, parameters)
    removed["items.thumbnail"] = sum(has_thumbnail for *_, has_thumbnail in items)
    target.revision, _ = delete_items(session, gallery.id, [name for _, name, is_live, _ in items if is_live])
    removed[ITEMS.name] = ITEMS.remove(session, parameters)
    _count_step(session, target, [_found(target, name, count) for name, count in removed.items()])


def _stragglers(parts: EraserParts, target: Erasure) -> None:
    """Do step 2."""
    with parts.database.session_scope() as session:
        upgrade = find_open_upgrade(session, target.gallery_id)
        if upgrade is not None:
            hold(session, AdvisoryLock.UPGRADE_STATE, upgrade.id)
        places = generation_places(session, target.gallery_id, "t.item_id = ANY(:item_ids)")
        removed = {place.name: place.remove(session, _parameters(target)) for place in places}
        _count_step(session, target, [_found(target, name, count) for name, count in removed.items() if count])
    crash_point("erasure.stragglers")


def _indexes(parts: EraserParts, target: Erasure) -> None:
    """Do step 3."""
    with parts.database.session_scope() as session:
        upgrade = find_open_upgrade(session, target.gallery_id)
        query = select(Generation).where(Generation.gallery_id == target.gallery_id, Generation.state.in_(STORED))
        generation_ids = [generation.id for generation in session.scalars(query.order_by(Generation.id))]
    locks = [(AdvisoryLock.REBUILD, 0), *([] if upgrade is None else [(AdvisoryLock.UPGRADE_PHASE, upgrade.id)])]
    with ExitStack() as held:
        for lock, id_ in locks:
            if not held.enter_context(parts.database.advisory_lock(lock, id_)):
                raise IndexBusy("An index is being built, or an upgrade judged; the erasure goes on when that is done.")
        upgrade_ids = {} if upgrade is None else {upgrade.to_generation_id: upgrade.id}
        found = [
            _rebuild(parts, target, GenerationKey(target.gallery_id, id_), upgrade_ids.get(id_))
            for id_ in generation_ids
        ]
        remove_dropped(parts.database, parts.engine, parts.wait_seconds)
    with parts.database.session_scope() as session:
        _count_step(session, target, [each for each in found if each is not None])
    crash_point("erasure.indexes")


def _rebuild(parts: EraserParts, target: Erasure, key: GenerationKey, upgrade_id: int | None) -> FoundPlace | None:
    """See that a generation's index has nothing of the items; return what there was to do, None without an index."""
    with parts.database.session_scope() as session:
        end_jobs_left_running(session, key.generation_id)  # nobody builds: their files are not needed
        generation = session.get_one(Generation, key.generation_id)
        has_index, revision = generation.index_name is not None, generation.index_revision or 0
    if not has_index:
        return None
    name = f"index of generation {key.generation_id}"
    why = parts.engine.take_out(key, np.array(target.item_ids, np.int64))
    if why is None and target.item_ids and revision < target.revision:
        build_generation_index(parts.database, parts.engine, key, upgrade_id=upgrade_id)
    return replace(_found(target, name, 1), why=why or "It is built of rows from after the erasure.")


def _images(parts: EraserParts, target: Erasure) -> None:
    """Do step 4."""
    digests = target.image_digests
    with parts.database.session_scope() as session:
        delete_unreferenced_blobs(session, parts.blobs, digests)
        shared = select(func.count(JudgedQuery.image_digest.distinct())).where(JudgedQuery.image_digest.in_(digests))
        remains = session.scalar(shared) or 0
        place = replace(_found(target, "images of queries", len(digests)), removed=len(digests) - remains)
        place = replace(place, remains=remains, why=_SHARED if remains else None)
        _count_step(session, target, [place] if digests else [])
    crash_point("erasure.images")


_STEPS = (_rows, _stragglers, _indexes, _images)


def _end(database: Database, job_id: int) -> None:
    """Do steps 5 to 7."""
    # 5.
    with database.session_scope() as session:
        job = session.get_one(Job, job_id, with_for_update=True)
        found = Found.from_json(job.result or {})
        if found.counted_at is None:
            found = _count_what_remains(session, job, found)
    crash_point("erasure.counted")

    # 6.
    _vacuum(database, found)
    crash_point("erasure.vacuumed")

    # 7.
    with database.session_scope() as session:
        job = session.get_one(Job, job_id, with_for_update=True)
        request = ErasureRequest.from_json(job.request or {})
        proof = found.proof(request)
        if succeed_job(session, job_id, proof):
            removed = sum(place.removed for place in found.places)
            after = {"job": job_id, "removed": removed, "sha256": proof["sha256"]}
            record(session, Act.ERASED, _subject(request), after=after, actor=request.asked_by)
    events.info("erasure.done", job_id=job_id, sha256=proof["sha256"])


def _subject(request: ErasureRequest) -> Subject:
    return Subject("gallery", request.gallery or "") if request.tenant is None else Subject("tenant", request.tenant)


def _count_what_remains(session: Session, job: Job, found: Found) -> Found:
    places = found.places
    for target in session.scalars(select(Erasure).where(Erasure.job_id == job.id).order_by(Erasure.gallery_id)):
        if session.get(Gallery, target.gallery_id) is not None:
            places = _count_remaining(session, target, places)
    trainings = select(func.count()).where(Job.kind == TRAINING, Job.state.in_(UNFINISHED))
    left: list[Json] = [{"place": place, "why": why} for place, why in _LEFT.items()]
    count = session.scalar(trainings) or 0
    left.append({"place": "rows of trainings", "trainings": count, "why": _TRAININGS})
    counted_at = datetime.now(UTC).isoformat(timespec="seconds")
    found = Found(places, tuple(left), counted_at)
    job.result = found.to_json()
    session.execute(delete(Erasure).where(Erasure.job_id == job.id))
    return found


def _count_remaining(session: Session, target: Erasure, found: tuple[FoundPlace, ...]) -> tuple[FoundPlace, ...]:
    """Return how much there is in each place by now."""
    if target.names is None:
        return found
    places_now = [*places_of_items(session, target.gallery_id), ITEMS]
    known: dict[str, Place] = {place.name: place for place in places_now}

    def counted_now(before: FoundPlace) -> FoundPlace:
        place = known.get(before.place)
        if before.gallery != target.gallery or place is None:
            return before
        remains = place.count(session, _parameters(target))
        return replace(before, remains=remains, why=place.why if remains else None)

    return tuple(map(counted_now, found))


def _vacuum(database: Database, found: Found) -> None:
    """Free the space of the removed rows, and of what the job knew."""
    tables = {place.place.partition(".")[0] for place in found.places}
    with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in sorted(tables | {"erasures", "jobs"}):
            if connection.scalar(select(func.to_regclass(table))) is not None:
                connection.execute(text(f"VACUUM {table}"))


def _parameters(target: Erasure) -> Json:
    return {
        "gallery_id": target.gallery_id,
        "tenant": target.tenant,
        "gallery": target.gallery,
        "names": target.names,
        "item_ids": target.item_ids,
    }


def _found(target: Erasure, place: str, count: int) -> FoundPlace:
    """Return that all of what was found in a place was removed."""
    return FoundPlace(target.gallery, place, count, count)


def _count_step(session: Session, target: Erasure, found: Sequence[FoundPlace]) -> None:
    """Count a step that is done, in the transaction that does it, with what was found."""
    job = session.get_one(Job, target.job_id, with_for_update=True)
    job.result = Found.from_json(job.result or {}).adding(found).to_json()
    job.error = None

    row = session.get_one(Erasure, (target.job_id, target.gallery_id))
    row.step = target.step + 1
    row.item_ids, row.image_digests, row.revision = target.item_ids, target.image_digests, target.revision
    session.flush()
    counts = select(func.count(), func.count().filter(Erasure.step == len(_STEPS)))
    total, done = session.execute(counts.where(Erasure.job_id == target.job_id)).one()
    job.progress = erasing(done, total)
    job.updated_at = datetime.now(UTC)
