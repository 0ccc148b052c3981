"""What a generation's rows say of their embeddings: transformations since the pixels, and h's expected squared error.

Of rows that were transformed before, the error is not known: NaN.
"""

from alembic import op
from sqlalchemy import text

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

UPGRADES = "SELECT to_generation_id, legs FROM upgrades ORDER BY id"
STORED = "SELECT id FROM generations WHERE to_regclass('embeddings_' || id) IS NOT NULL ORDER BY id"


def upgrade() -> None:
    connection = op.get_bind()
    hops: dict[int, int] = {}
    for generation_id, legs in connection.execute(text(UPGRADES)):
        hops[generation_id] = hops.get(legs[0]["generation"], 0) + len(legs[0]["transformations"])

    for generation_id in connection.scalars(text(STORED)).all():
        table, count = f"embeddings_{int(generation_id)}", hops.get(generation_id, 0)
        uncertainty = "NaN" if count else "0"
        # Defaults of rows that exist, not of rows to come: no row is rewritten.
        op.execute(
            f"ALTER TABLE {table} ADD COLUMN hops smallint NOT NULL DEFAULT {count},"
            f" ADD COLUMN uncertainty real NOT NULL DEFAULT '{uncertainty}'"
        )
        op.execute(f"ALTER TABLE {table} ALTER COLUMN hops DROP DEFAULT, ALTER COLUMN uncertainty DROP DEFAULT")
        if count:
            op.execute(f"UPDATE {table} SET hops = 0, uncertainty = 0 WHERE origin <> 3")
