"""Asking both generations the same image query while an upgrade is baked.

It is done in the thread of shadowed queries (`service.domain.judging.shadowed_queries`): each generation is asked in
the same way, its encoder and its index apart from other queries, under the query's filter and for the ten nearest. What
is noted are figures, and nothing of the query.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from service import logs
from service.db import Database
from service.domain.gallery.galleries import Bake
from service.domain.judging.baked_queries import Compared, note_compared
from service.index.served import ServedGeneration

events = logs.Events(__name__)

K = 10
Ask = Callable[[ServedGeneration], list[str]]  # -> the ids of the ten nearest items


@dataclass(frozen=True)
class _Answered:
    """What one generation gave: the ids, None where it failed."""

    ids: list[str] | None
    seconds: float


def compare(
    database: Database,
    bake: Bake,
    after: ServedGeneration | None,
    before: ServedGeneration,
    ask: Ask,
    *,
    has_failed: bool,
) -> Callable[[], None]:
    """Ask both generations, and return what notes it. `has_failed`: who asked first got an error from the new one; it
    is None where it is not loaded."""
    # Whichever is asked first finds the caches cold.
    if random.random() < 0.5:  # noqa: S311 - no secret
        new, old = _answered(after, ask), _answered(before, ask)
    else:
        old, new = _answered(before, ask), _answered(after, ask)
    found_before, found_after = old.ids or [], new.ids or []
    is_compared = bool(found_before) and new.ids is not None
    compared = Compared(
        failed_before=old.ids is None,
        failed_after=has_failed or new.ids is None,
        seconds_before=old.seconds,
        seconds_after=new.seconds,
        found_before=len(found_before),
        found_after=len(found_after),
        overlap=len(set(found_before) & set(found_after)) / len(found_before) if is_compared else None,
    )
    return partial(_note, database, bake.upgrade_id, compared)


def _answered(served: ServedGeneration | None, ask: Ask) -> _Answered:
    if served is None:
        return _Answered(None, 0.0)
    began = time.perf_counter()
    try:
        ids = ask(served)
    except Exception as error:  # noqa: BLE001 - that a generation fails, of whatever, is what is looked for; logged
        events.warning(
            "bake.query_failed", generation_id=served.generation_id, reason=f"{type(error).__name__}: {error}"
        )
        return _Answered(None, time.perf_counter() - began)
    return _Answered(ids, time.perf_counter() - began)


def _note(database: Database, upgrade_id: int, compared: Compared) -> None:
    with database.session_scope() as session:
        note_compared(session, upgrade_id, compared)
