"""The processor that an attempt's guest sees."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("allocation", sa.Column("cpu", sa.Text(), nullable=False, server_default=sa.text("''")))
