"""Evidence by the new model, the reports that judging makes of it, and what they hold up."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE upgrades
    DROP COLUMN evaluation,
    ADD COLUMN gates JSONB DEFAULT '[]' NOT NULL,
    ADD COLUMN observe BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN evaluate_seed BIGINT,
    ADD COLUMN evaluate_asked_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN decision JSONB;

CREATE TABLE reference_pairs (
    gallery_id BIGINT NOT NULL,
    from_version_id BIGINT NOT NULL,
    to_version_id BIGINT NOT NULL,
    item_id BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    embedding_from BYTEA NOT NULL,
    embedding_to BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_reference_pairs PRIMARY KEY (gallery_id, from_version_id, to_version_id, item_id),
    CONSTRAINT fk_reference_pairs_gallery_id FOREIGN KEY (gallery_id)
        REFERENCES galleries (id) ON DELETE CASCADE,
    CONSTRAINT fk_reference_pairs_from_version_id FOREIGN KEY (from_version_id)
        REFERENCES model_versions (id) ON DELETE CASCADE,
    CONSTRAINT fk_reference_pairs_to_version_id FOREIGN KEY (to_version_id)
        REFERENCES model_versions (id) ON DELETE CASCADE,
    CONSTRAINT fk_reference_pairs_item_id FOREIGN KEY (item_id) REFERENCES items (id) ON DELETE CASCADE
);

CREATE TABLE reports (
    upgrade_id BIGINT NOT NULL,
    number BIGINT NOT NULL,
    verdict TEXT NOT NULL,
    revision BIGINT NOT NULL,
    evidence BIGINT NOT NULL,
    content TEXT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_reports PRIMARY KEY (upgrade_id, number),
    CONSTRAINT ck_reports_verdict CHECK (verdict IN ('pass', 'fail', 'inconclusive', 'not_judged')),
    CONSTRAINT fk_reports_upgrade_id FOREIGN KEY (upgrade_id) REFERENCES upgrades (id) ON DELETE CASCADE
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
