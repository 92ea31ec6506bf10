"""Groups: jobs that are submitted as one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "job_group",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("alive", sa.Boolean(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=True),
        sa.Column("image", sa.Text(), nullable=True),
        sa.Column("image_digest", sa.Text(), nullable=False),
        sa.Column("workflow", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("wish", sa.Text(), nullable=False),
        sa.Column("made", sa.Integer(), nullable=False),
        sa.Column("aborted", sa.Integer(), nullable=True),
        sa.Column("rescue", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("ended", sa.Float(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job_group"),
        sa.UniqueConstraint("number", name="uq_job_group_number"),
        sa.UniqueConstraint("owner", "project", "idempotency_key", name="uq_job_group_owner_project_idempotency_key"),
    )
    op.create_index("ix_job_group_alive", "job_group", ["number"], sqlite_where=sa.text("alive = 1"))
    op.create_table(
        "node",
        sa.Column("group", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("group", "name", name="pk_node"),
        sa.ForeignKeyConstraint(["group"], ["job_group.id"], name="fk_node_group_job_group"),
    )
    for name in ("group", "member"):
        op.add_column("job", sa.Column(name, sa.Text(), nullable=False, server_default=sa.text("''")))
    alone, member = sa.text("\"group\" = ''"), sa.text("\"group\" != ''")
    op.create_index("ix_job_alone", "job", ["number"], sqlite_where=alone)
    op.create_index("ix_job_group", "job", ["group", "state", "exit_code", "number"], sqlite_where=member)
    op.create_index("ix_job_member", "job", ["group", "member"], unique=True, sqlite_where=member)
