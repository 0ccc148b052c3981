"""Model versions without networks: of vectors alone, until networks are added."""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE model_versions
    ALTER COLUMN preprocessing DROP NOT NULL,
    ALTER COLUMN embedding_model_digest DROP NOT NULL,
    ALTER COLUMN embedding_model_kind DROP NOT NULL;
"""


def upgrade() -> None:
    op.execute(SCHEMA)
