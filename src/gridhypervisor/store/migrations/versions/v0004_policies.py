"""Scheduling policies, every version; jobs are found by when they ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "policy",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_policy"),
    )
    op.create_index("ix_job_ended", "job", ["ended"], sqlite_where=sa.text("ended IS NOT NULL"))
