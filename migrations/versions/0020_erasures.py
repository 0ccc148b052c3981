"""Erasures: what a job is still to remove of a gallery."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE erasures (
    job_id BIGINT NOT NULL,
    gallery_id BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    gallery TEXT NOT NULL,
    names TEXT[],
    step BIGINT DEFAULT 0 NOT NULL,
    item_ids BIGINT[] DEFAULT '{}' NOT NULL,
    image_digests TEXT[] DEFAULT '{}' NOT NULL,
    revision BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_erasures PRIMARY KEY (job_id, gallery_id),
    CONSTRAINT fk_erasures_job_id FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
