"""The kind of index that a gallery asks for."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE galleries
    ADD COLUMN index TEXT DEFAULT 'auto' NOT NULL,
    ADD CONSTRAINT ck_galleries_index CHECK (index IN ('auto', 'flat', 'hnsw', 'ivf', 'ivf_sq8'));
"""


def upgrade() -> None:
    op.execute(SCHEMA)
