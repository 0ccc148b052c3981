"""Planning an upgrade of another store: what refuses it, what it would take, and cutting its keys into ranges.

A worker begins one: 1. the store makes its new side (crash point `external.prepared`); 2. the ranges are recorded with
the change of state (`external.planned`). Both may be done again.
"""

import math
import random
import secrets
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import identity, logs
from service.access.quotas import check_open_upgrades
from service.access.tenancy import own_or_shared
from service.audit import Act, Subject, record
from service.connectors.named import NamedStores
from service.connectors.store import Description, ExternalStore, Rows, keep_open_ends
from service.crash_points import crash_point
from service.db import Database
from service.domain.choice import choose
from service.domain.external.rows import side_information_dim_of, stored_dtype
from service.domain.external.upgrades import change_state
from service.domain.external_state import ExternalAction, ExternalState
from service.domain.registry import get_transformation, get_version
from service.errors import Conflict
from service.queue import ADVANCE_EXTERNAL, send_after_commit
from service.settings import Settings
from service.tables import CutoverOption, ExternalBatch, ExternalEvent, ExternalUpgrade, ModelVersion, Transformation

events = logs.Events(__name__)

REFERENCE_ITEMS = 2_000  # rows that are drawn to judge an upgrade by
_REFERENCE_RANGES = 16  # and how many ranges they are of at most: each is read again when the upgrade is judged
_SAMPLE_ROWS = 1_000
_UNIT = 0.01  # how far from 1 norms of unit vectors are in any store's number format
_NUMBER_BYTES = {"float16": 2, "float32": 4}


class StoreTaken(Conflict):
    """The store has an upgrade that is not ended, or whose new side is not removed yet."""


class StoreOfOtherSpace(Conflict):
    """What the store holds cannot be what the model version gives."""


class NoTransformation(Conflict):
    """No registered transformation leads from the one version to the other."""


@dataclass(frozen=True)
class WantedExternal:
    """What a client asks for. Without a `transformation_id` it is chosen as `service.domain.choice` says."""

    store: str
    from_version: str
    to_version: str
    transformation_id: int | None = None
    cutover: CutoverOption = "manual"
    speed: float = 1.0


@dataclass(frozen=True)
class Outline:
    """An upgrade that could start now. `bytes` are those of the new side's vectors, `switch` says what a cutover does
    to the store, and `cannot_judge` what no check here can tell."""

    transformation: Transformation
    from_version: ModelVersion
    to_version: ModelVersion
    description: Description
    ranges: int
    bytes: int
    switch: str
    cannot_judge: list[str]


_TAKEN = "Store {store!r} has external upgrade {upgrade}, which is {state}: let it end, and what it left be removed."
_DIMS = "Store {store!r} holds embeddings of {found} numbers, and model version {version!r} gives {wanted}."
_NO_SIDE = (
    "Model version {version!r} has side-information, of which h makes use, and store {store!r} has {found}: name a"
    " transformation from a version without, or add it to the store."
)
_NOT_UNIT = (
    "Model version {version!r} gives embeddings of unit norm, and of {rows} rows of store {store!r} {count} have"
    " another one: these are of another model, or were changed."
)
_SCALED = (
    "Store {store!r} brings vectors to unit norm, which model version {version!r} does not give: h learned from"
    " embeddings that are not there any more."
)
_NONE = "No transformation leads from {before!r} to {after!r}: register one, or train it."
_NOTICED = (
    "In one step, together with what was written until then; the old side is kept until the upgrade is finalized."
)
_UNNOTICED = (
    "In one step, after the store was read once more. Hold writes to it from then until it is switched: what is written"
    " all the same is looked for afterwards, and keys whose sides differ then are named. The old side is kept until the"
    " upgrade is finalized."
)


def outline(session: Session, stores: NamedStores, settings: Settings, wanted: WantedExternal) -> Outline:
    """Return what an upgrade would do; refuses what `plan_external_upgrade` would refuse."""
    return _outline(session, stores, settings, wanted)


def switch_sentence(*, notices_writes: bool) -> str:
    """Return what a cutover does to a store."""
    return _NOTICED if notices_writes else _UNNOTICED


def plan_external_upgrade(
    session: Session, stores: NamedStores, settings: Settings, wanted: WantedExternal
) -> ExternalUpgrade:
    """Record an upgrade, and have a worker begin it; the store is read and not changed.

    Raises `UnknownStore`, `UnknownVersion` and `UnknownTransformation` (404), `StoreTaken`, `StoreOfOtherSpace`,
    `NoTransformation`, `AmbiguousTransformation`, `NoSoundTransformation` and `StoreRefused` (409), `QuotaExceeded`
    (429), and `StoreAway` (503).
    """
    found = _outline(session, stores, settings, wanted)
    upgrade = ExternalUpgrade(
        tenant=identity.current.get().tenant,
        store=wanted.store,
        side_name=f"gallery_upgrade_{secrets.token_hex(4)}",
        from_version_id=found.from_version.id,
        to_version_id=found.to_version.id,
        transformation_id=found.transformation.id,
        description=asdict(found.description),
        batch_rows=settings.batch_items,
        cutover=wanted.cutover,
        speed=wanted.speed,
        state=ExternalState.PLANNED,
    )
    session.add(upgrade)
    try:
        session.flush()  # the unique index on stores has the last word
    except IntegrityError as error:
        raise StoreTaken(f"Store {wanted.store!r} has just been taken by another upgrade.") from error
    check_open_upgrades(session, settings)
    session.add(ExternalEvent(upgrade_id=upgrade.id, state=ExternalState.PLANNED))
    send_after_commit(session, ADVANCE_EXTERNAL, upgrade.id)
    opened = {
        "store": wanted.store,
        "from_version": wanted.from_version,
        "to_version": wanted.to_version,
        "transformation": found.transformation.id,
        "cutover": wanted.cutover,
    }
    record(session, Act.EXTERNAL_OPENED, Subject("external_upgrade", upgrade.id), after=opened)
    events.info("external.planned", external_id=upgrade.id, store=wanted.store)
    session.refresh(upgrade)
    return upgrade


def begin(database: Database, store: ExternalStore, upgrade: ExternalUpgrade) -> None:
    """Make the new side and cut the keys into ranges; whoever does holds the upgrade's phase lock.

    The store is prepared first, so that it notices what is written from then on (crash point `external.prepared`); a
    crash there leaves an empty new side, which the next try finds. Raises `IllegalTransition` when a user was first.
    """
    store.prepare()
    crash_point("external.prepared")
    ranges = keep_open_ends(store.bounds(upgrade.batch_rows))
    drawn = random.Random(upgrade.id).sample(range(len(ranges)), min(_REFERENCE_RANGES, len(ranges)))  # noqa: S311
    rows: list[dict[str, Any]] = [
        {
            "upgrade_id": upgrade.id,
            "pass_number": 1,
            "number": number,
            "after": keys.after,
            "upto": keys.upto,
            "references_wanted": math.ceil(REFERENCE_ITEMS / len(drawn)) if number in drawn else 0,
        }
        for number, keys in enumerate(ranges)
    ]
    with database.session_scope() as session:
        change_state(session, upgrade.id, ExternalAction.START, pass_number=1)
        session.execute(insert(ExternalBatch), rows)
    crash_point("external.planned")


def _outline(session: Session, stores: NamedStores, settings: Settings, wanted: WantedExternal) -> Outline:
    before, after = get_version(session, wanted.from_version), get_version(session, wanted.to_version)
    transformation = _transformation(session, before, after, wanted.transformation_id)
    with stores.opened(wanted.store) as store:
        taken = session.scalar(
            select(ExternalUpgrade).where(ExternalUpgrade.store == wanted.store, ExternalUpgrade.cleaned_at.is_(None))
        )
        if taken is not None:
            raise StoreTaken(_TAKEN.format(store=wanted.store, upgrade=taken.id, state=taken.state))
        description = store.describe()
        _check_dims(wanted.store, description, before)
        ranges = keep_open_ends(store.bounds(settings.batch_items))
        cannot_judge = _check_norms(wanted.store, description, before, store.read(ranges[0]))
    numbers = after.embedding_dim + (side_information_dim_of(transformation, after) or 0)
    return Outline(
        transformation,
        before,
        after,
        description,
        len(ranges),
        description.rows * numbers * _NUMBER_BYTES[stored_dtype(description)],
        switch_sentence(notices_writes=description.notices_writes),
        cannot_judge,
    )


def _transformation(session: Session, before: ModelVersion, after: ModelVersion, named: int | None) -> Transformation:
    if named is not None:
        get_transformation(session, named)
    between = (Transformation.from_version_id == before.id, Transformation.to_version_id == after.id)
    query = select(Transformation).where(*between, own_or_shared(Transformation)).order_by(Transformation.id)
    usable = [found for found in session.scalars(query) if found.id == named or found.may_serve("instance")]
    if not usable or (named is not None and named not in {found.id for found in usable}):
        raise NoTransformation(_NONE.format(before=before.name, after=after.name))
    return choose(usable, f"from {before.name!r} to {after.name!r}", named)


def _check_dims(name: str, description: Description, version: ModelVersion) -> None:
    if description.embedding_dim != version.embedding_dim:
        raise StoreOfOtherSpace(
            _DIMS.format(
                store=name, found=description.embedding_dim, version=version.name, wanted=version.embedding_dim
            )
        )
    found, wanted = description.side_information_dim, version.side_information_dim
    if wanted is not None and found != wanted:
        has = "none" if found is None else f"some of {found} numbers, not {wanted}"
        raise StoreOfOtherSpace(_NO_SIDE.format(version=version.name, store=name, found=has))


def _check_norms(name: str, description: Description, version: ModelVersion, rows: Rows) -> list[str]:
    """Return what cannot be told of the store. Raises `StoreOfOtherSpace` for norms that the version does not give."""
    if description.scales and not version.normalize:
        raise StoreOfOtherSpace(_SCALED.format(store=name, version=version.name))
    norms = np.linalg.norm(rows.embedding[:_SAMPLE_ROWS].astype(np.float64), axis=1)
    norms = norms[np.isfinite(norms)]
    other = int((np.abs(norms - 1) > _UNIT).sum())
    if version.normalize and other:
        raise StoreOfOtherSpace(_NOT_UNIT.format(version=version.name, rows=len(norms), store=name, count=other))
    cannot_judge = [
        f"Whether the embeddings are {version.name!r}'s: those of another model of {version.embedding_dim} numbers"
        " look alike, until references are given.",
        "How well h does on this gallery, until vectors by the new version are given as references.",
    ]
    if description.warning is not None:
        cannot_judge.append(description.warning)
    if not description.notices_writes:
        cannot_judge.append("Which rows are written while the store is switched: it does not say.")
    if not version.normalize and len(norms) and not other:
        cannot_judge.append(
            f"Whether vectors were brought to unit norm: those read have it, and {version.name!r} need not give it."
        )
    return cannot_judge
