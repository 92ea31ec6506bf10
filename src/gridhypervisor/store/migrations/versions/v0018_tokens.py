"""Tokens of users who come over the network."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.create_table(
        "token",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "owner", "project", "name", "scope", "digest")),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("created", "expires")),
        sa.Column("outbound", sa.Boolean(), nullable=False),
        sa.Column("revoked", sa.Float(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_token"),
    )
