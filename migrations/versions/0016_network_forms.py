"""How networks take their input, and which transformation between two versions is taken unless one is named."""

from alembic import op

revision = "0016"
down_revision = "0014"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE model_versions
    ADD COLUMN embedding_model_form JSONB DEFAULT '{}' NOT NULL,
    ADD COLUMN side_information_model_form JSONB DEFAULT '{}' NOT NULL;

ALTER TABLE transformations ADD COLUMN is_default BOOLEAN DEFAULT false NOT NULL;

CREATE UNIQUE INDEX uq_transformations_default ON transformations (from_version_id, to_version_id) WHERE is_default;
"""


def upgrade() -> None:
    op.execute(SCHEMA)
