"""How many items a gallery has, counted by its writes instead of by its readers."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE galleries ADD COLUMN items BIGINT DEFAULT 0 NOT NULL;
UPDATE galleries g SET items = (
    SELECT count(*) FROM items i WHERE i.gallery_id = g.id AND i.deleted_at IS NULL
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
