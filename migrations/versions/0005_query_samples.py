"""A sample of each gallery's queries under each model version, by which the width of an index is chosen."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE query_samples (
    gallery_id BIGINT NOT NULL,
    model_version_id BIGINT NOT NULL,
    slot BIGINT NOT NULL,
    vector BYTEA NOT NULL,
    asked_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_query_samples PRIMARY KEY (gallery_id, model_version_id, slot),
    CONSTRAINT fk_query_samples_gallery_id FOREIGN KEY(gallery_id) REFERENCES galleries (id) ON DELETE CASCADE,
    CONSTRAINT fk_query_samples_model_version_id FOREIGN KEY(model_version_id) REFERENCES model_versions (id) ON DELETE CASCADE
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
