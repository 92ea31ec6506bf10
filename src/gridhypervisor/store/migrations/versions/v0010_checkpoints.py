"""Guests that were saved, what is asked for of them, and when a job was suspended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("job", sa.Column("pauses", sa.Text(), nullable=False, server_default=sa.text("'[]'")))
    op.add_column("allocation", sa.Column("restore", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("allocation", sa.Column("saving", sa.Text(), nullable=True))
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("alive", sa.Boolean(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("owner", "project", "job", "entry", "site")),
        sa.Column("bytes", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("executed", "made", "since")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("checkpoint", "state", "note")),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["job.id"], name="fk_checkpoint_job_job"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoint"),
    )
    op.create_index("ix_checkpoint_job", "checkpoint", ["job"])
    op.create_index("ix_checkpoint_alive", "checkpoint", ["job"], sqlite_where=sa.text("alive = 1"))
