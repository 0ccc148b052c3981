"""The trace of the request that asked for an upgrade, which its batches name."""

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE upgrades ADD COLUMN trace TEXT;
"""


def upgrade() -> None:
    op.execute(SCHEMA)
