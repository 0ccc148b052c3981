"""Alembic's environment: runs on the connection that `migrations.upgrade_database` passes in."""

from alembic import context
from sqlalchemy import text

from service.tables import Base

connection = context.config.attributes["connection"]
connection.execute(text("SET lock_timeout = '10s'"))
connection.commit()
context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
