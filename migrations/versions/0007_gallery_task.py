"""What a gallery is searched for: its items, or classes of them."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE galleries
    ADD COLUMN task TEXT DEFAULT 'instance' NOT NULL,
    ADD CONSTRAINT ck_galleries_task CHECK (task IN ('instance', 'class'));
"""


def upgrade() -> None:
    op.execute(SCHEMA)
