"""Votes on two answers, given without knowing which generation gave which.

Revision ID: 0020
Revises: 0022
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blind_votes",
        sa.Column("upgrade_id", sa.BigInteger(), nullable=False),
        sa.Column("item_id", sa.BigInteger(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("choice IN ('before', 'after', 'neither')", name=op.f("ck_blind_votes_choice")),
        sa.ForeignKeyConstraint(
            ["upgrade_id"], ["upgrades.id"], name=op.f("fk_blind_votes_upgrade_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("fk_blind_votes_item_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("upgrade_id", "item_id", name=op.f("pk_blind_votes")),
    )


def downgrade() -> None:
    op.drop_table("blind_votes")
