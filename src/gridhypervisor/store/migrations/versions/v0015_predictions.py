"""What was predicted of attempts, and what of it came true."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("allocation", sa.Column("expected", sa.Text(), nullable=True))
    op.add_column("ledger", sa.Column("operations", sa.Text(), nullable=False, server_default=sa.text("'[]'")))
