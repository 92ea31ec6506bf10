"""Sites: what the newest probe found on a node."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("site", sa.Column("probed", sa.Text(), nullable=True))
    op.add_column("site", sa.Column("probed_at", sa.Float(), nullable=False, server_default=sa.text("0")))
