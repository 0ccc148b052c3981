"""How many image queries a canary took, and how many of them its candidate failed."""

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE upgrades
    ADD COLUMN canary_answered BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN canary_failed BIGINT DEFAULT 0 NOT NULL;
"""


def upgrade() -> None:
    op.execute(SCHEMA)
