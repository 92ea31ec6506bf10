"""Jobs that go on through several batch jobs: how long each of these is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("allocation", sa.Column("segment", sa.Text(), nullable=True))
