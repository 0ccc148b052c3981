"""What a job that a client asks for remembers: the request, where its files are, and how often it was tried."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE jobs
    ADD COLUMN request JSONB,
    ADD COLUMN file_prefix TEXT,
    ADD COLUMN attempts BIGINT DEFAULT 0 NOT NULL;

CREATE INDEX ix_jobs_unfinished ON jobs (id) WHERE state IN ('queued', 'running');
"""


def upgrade() -> None:
    op.execute(SCHEMA)
