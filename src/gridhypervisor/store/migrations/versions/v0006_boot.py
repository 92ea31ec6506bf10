"""Ledgers: how the guest began."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("ledger", sa.Column("boot", sa.Text(), nullable=False, server_default=sa.text("''")))
