"""Gangs: how far each is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("job_group", sa.Column("rounds", sa.Text(), nullable=False, server_default=sa.text("'{}'")))
