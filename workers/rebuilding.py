"""Building a new index file for a generation whose file is out of date, or that has none."""

from psycopg.errors import UndefinedTable
from sqlalchemy.exc import ProgrammingError

from service import logs
from service.domain.indexes.builds import GaveWay, build_generation_index
from service.domain.indexes.due import REBUILD_LOCK, Rebuilds
from service.index.replica import GenerationGone
from workers.app import WorkerParts

events = logs.Events(__name__)


def rebuild_index(parts: WorkerParts, generation_id: int) -> bool:
    """Build the file if it is still due and no other worker builds one. Returns False: the sweep finds what is due
    next."""
    with parts.database.advisory_lock(REBUILD_LOCK, 0) as mine:
        if not mine:
            return False
        with parts.database.session_scope() as session:
            due = Rebuilds().find_due(session, parts.settings, generation_id)
        if due is None:
            return False
        try:
            build_generation_index(
                parts.database,
                parts.blobs,
                parts.settings,
                due.gallery_id,
                due.generation_id,
                upgrade_id=None,
                only_width=due.only_width,
            )
        except GaveWay as error:
            events.info("index.gave_way", generation_id=generation_id, reason=str(error))
        except (GenerationGone, UndefinedTable, ProgrammingError) as error:  # COPY raises the driver's own errors
            if isinstance(error, ProgrammingError) and not isinstance(error.orig, UndefinedTable):
                raise
            events.info("index.generation_gone", generation_id=generation_id, reason=str(error))
    return False
