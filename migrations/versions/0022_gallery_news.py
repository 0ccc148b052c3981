"""Galleries say when they change: their revision, their generations, and the index files of these."""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

TRIGGERS = """
CREATE OR REPLACE FUNCTION tell_gallery_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'generations' THEN
        PERFORM pg_notify('gallery_changed', NEW.gallery_id::text);
    ELSIF NEW.active_generation_id IS DISTINCT FROM OLD.active_generation_id THEN
        PERFORM pg_notify('gallery_changed', NEW.id::text);
    ELSE
        PERFORM pg_notify('gallery_changed', NEW.id || ' ' || NEW.revision);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER gallery_changed AFTER UPDATE OF revision, active_generation_id ON galleries
    FOR EACH ROW WHEN (OLD.revision <> NEW.revision OR OLD.active_generation_id IS DISTINCT FROM NEW.active_generation_id)
    EXECUTE FUNCTION tell_gallery_changed();

CREATE TRIGGER generation_changed AFTER UPDATE OF state, index_sha256 ON generations
    FOR EACH ROW EXECUTE FUNCTION tell_gallery_changed();
"""


def upgrade() -> None:
    op.execute(TRIGGERS)
