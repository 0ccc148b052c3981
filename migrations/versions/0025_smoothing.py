"""Smoothing the rows of an upgrade, and the state and the batches of it."""

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE upgrades ADD COLUMN smoothing JSONB;
ALTER TABLE upgrades ADD COLUMN smoothed_revision BIGINT;
ALTER TABLE upgrades ADD COLUMN smoothed_index TEXT;
DROP INDEX uq_upgrades_open;
CREATE UNIQUE INDEX uq_upgrades_open ON upgrades (gallery_id)
    WHERE state IN ('planned', 'transforming', 'indexing', 'smoothing', 'evaluating', 'ready', 'paused', 'failed');
ALTER TABLE upgrade_batches DROP CONSTRAINT ck_upgrade_batches_phase;
ALTER TABLE upgrade_batches ADD CONSTRAINT ck_upgrade_batches_phase
    CHECK (phase IN ('transforming', 'catching_up', 'smoothing'));
"""


def upgrade() -> None:
    op.execute(SCHEMA)
