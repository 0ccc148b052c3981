"""What a worker has to say to the database after an outage cut it off."""

import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from service.db import Database, Session, is_outage

_OUTAGE_SECONDS = 60.0
_PAUSE_SECONDS = 0.2


def retry_when_back(database: Database, statement: Callable[[Session], None]) -> None:
    """Run it in a transaction once the database is back, as when work is returned that an outage cut off; raises the
    outage when that takes more than a minute."""
    ends = time.monotonic() + _OUTAGE_SECONDS
    while True:
        try:
            with database.session_scope() as session:
                return statement(session)
        except DBAPIError as error:
            if not is_outage(error) or time.monotonic() > ends:
                raise
            time.sleep(_PAUSE_SECONDS)
