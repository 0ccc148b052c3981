"""Alembic: `upgrade_database(engine)` brings a database to the newest schema; each revision is one transaction."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

from service.advisory_locks import AdvisoryLock, key_of


def upgrade_database(engine: Engine) -> None:
    """Apply every missing migration; safe to call from several processes at once."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock, :id)"), key_of(AdvisoryLock.MIGRATION))
        connection.commit()
        try:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
        finally:
            connection.execute(text("RESET lock_timeout"))  # set by env.py; the connection goes back to its pool
            connection.execute(text("SELECT pg_advisory_unlock(:lock, :id)"), key_of(AdvisoryLock.MIGRATION))
            connection.commit()
