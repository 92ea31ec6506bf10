"""What requests with an Idempotency-Key were answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "answer",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("owner", "project", "key", "fingerprint")),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("content_type", "location", "body")),
        sa.PrimaryKeyConstraint("owner", "project", "key", name="pk_answer"),
    )
    op.create_index("ix_answer_at", "answer", ["at"])
