"""Building a new index for a generation whose index is out of date, or that has none."""

from service import logs
from service.advisory_locks import AdvisoryLock
from service.disk import shortage
from service.domain.gallery.generations import gone_if_dropped
from service.domain.indexes.builds import GaveWay, build_generation_index
from service.domain.upgrade.upgrades import find_due_build, upgrade_needs_workers
from service.index.served import GenerationGone
from workers.app import WorkerParts

events = logs.Events(__name__)


def rebuild_index(parts: WorkerParts, generation_id: int) -> bool:
    """Build the index if it is still due and no other worker rebuilds one.

    Return False, as there is no next time slice: the sweep finds what is due next.
    """
    with parts.database.advisory_lock(AdvisoryLock.REBUILD) as mine:
        if not mine:
            return False

        with parts.database.session_scope() as session:
            due = find_due_build(session, parts.engine, generation_id)
        if due is None:
            return False
        lack = shortage(parts.settings)
        if lack is not None:
            events.warning("index.waits_for_room", generation_id=generation_id, reason=lack)
            return False

        try:
            with gone_if_dropped():
                build_generation_index(
                    parts.database,
                    parts.engine,
                    due.generation,
                    gives_way=upgrade_needs_workers,
                    only_width=due.only_width,
                )
        except GaveWay as error:
            events.info("index.gave_way", generation_id=generation_id, reason=str(error))
        except GenerationGone as error:
            events.info("index.generation_gone", generation_id=generation_id, reason=str(error))
    return False
