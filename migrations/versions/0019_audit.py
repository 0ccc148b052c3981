"""The audit: who did what to what, in a chain of hashes; a trigger refuses to change or remove what is there."""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE audit (
    id BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    key_id TEXT,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    action TEXT NOT NULL,
    subject_kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    request_id TEXT NOT NULL,
    before JSON,
    after JSON,
    reason TEXT,
    hash TEXT NOT NULL,
    CONSTRAINT pk_audit PRIMARY KEY (id)
);
CREATE INDEX ix_audit_subject_kind_subject_id ON audit (subject_kind, subject, id);

CREATE OR REPLACE FUNCTION refuse_to_change_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'Entries of the audit are added, and never changed or removed; see docs/audit.md for retention.';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit();
"""


def upgrade() -> None:
    op.execute(SCHEMA)
