"""Ids in one form, Unicode's NFC; and the items of a batch that cannot be upgraded.

Ids that would be the same in that form stay as they are: which of the rows is meant cannot be told. They are still found
by the id as it is stored, so that a user can delete one of them.
"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

RENAME = """
WITH named AS (
    SELECT id, normalize(external_id, NFC) AS name,
        count(*) OVER (PARTITION BY {owner}, normalize(external_id, NFC)) AS rows_of_name
    FROM {table} WHERE {owner} IN (SELECT {owner} FROM {table} WHERE external_id IS NOT NFC NORMALIZED)
)
UPDATE {table} t SET external_id = named.name FROM named
WHERE t.id = named.id AND named.rows_of_name = 1 AND t.external_id <> named.name
"""

MENTIONED = """
UPDATE judged_queries SET item_external_id = normalize(item_external_id, NFC)
WHERE item_external_id IS NOT NFC NORMALIZED;

UPDATE judged_queries SET relevant = ARRAY(
    SELECT normalize(name, NFC) FROM unnest(relevant) WITH ORDINALITY AS named(name, place) ORDER BY place
) WHERE EXISTS (SELECT FROM unnest(relevant) AS name WHERE name IS NOT NFC NORMALIZED);
"""


def upgrade() -> None:
    op.execute("ALTER TABLE upgrade_batches ADD COLUMN refused JSONB")
    op.execute(RENAME.format(table="items", owner="gallery_id"))
    op.execute(RENAME.format(table="judged_queries", owner="query_set_id"))
    op.execute(MENTIONED)
