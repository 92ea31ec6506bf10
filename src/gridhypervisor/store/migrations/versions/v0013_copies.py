"""Copies of checkpoints on the service's own machine, and attempts that go on from one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("checkpoint", sa.Column("copy", sa.Text(), nullable=False, server_default=sa.text("'none'")))
    op.add_column("allocation", sa.Column("copied", sa.Boolean(), nullable=False, server_default=sa.false()))
