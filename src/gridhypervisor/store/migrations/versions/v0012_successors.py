"""Attempts that are asked for before the one before them is over, and what they are charged with for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    for name in ("ahead", "go"):
        op.add_column("allocation", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("charge", sa.Column("double", sa.Float(), nullable=False, server_default=sa.text("0")))
