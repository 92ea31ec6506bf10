"""Virtual infrastructures: groups whose members are VMs that run until they are stopped."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("job", sa.Column("service", sa.Text(), nullable=True))
    op.add_column("job_group", sa.Column("blueprint", sa.Text(), nullable=True))
    op.add_column("job_group", sa.Column("standing", sa.Text(), nullable=False, server_default=sa.text("'{}'")))
