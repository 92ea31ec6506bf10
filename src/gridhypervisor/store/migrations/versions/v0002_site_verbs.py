"""Sites: an agent and a configuration of ssh's, and whether they are drained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("site", sa.Column("agent", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("site", sa.Column("ssh_config", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("site", sa.Column("draining", sa.Boolean(), nullable=False, server_default=sa.false()))
