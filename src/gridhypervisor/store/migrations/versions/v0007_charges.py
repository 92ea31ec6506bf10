"""What attempts have used, which outlives their jobs. Of those that are over already it is worked out here, once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

OVER = """
INSERT INTO charge
SELECT id, job, owner, project, site, profile, coalesce(json_extract(exit, '$.reason'), why, ''),
    coalesce(json_extract(exit, '$.outcome') = 'completed', 0), ended,
    coalesce(coalesce(running, ended) - submitting, 0.0), coalesce(ended - running, 0.0),
    coalesce(ended - running, 0.0) * cpus
FROM (
    SELECT a.id, a.job, a.owner, a.project, a.site, a.why, a.exit,
        json_extract(a.times, '$.submitting') AS submitting, json_extract(a.times, '$.running') AS running,
        coalesce(json_extract(a.times, '$.ended'), json_extract(a.times, '$.collected'),
            json_extract(a.times, '$.since')) AS ended,
        coalesce(json_extract(j.spec, '$.resources.cpus'), 1) AS cpus,
        CASE WHEN coalesce(json_extract(j.spec, '$.image'), '') = '' THEN 'probe'
            WHEN j."group" LIKE 'a%' THEN 'array' WHEN j."group" LIKE 'w%' THEN 'workflow' ELSE 'single' END AS profile
    FROM allocation a JOIN job j ON j.id = a.job
    WHERE a.state IN ('collected', 'revoked', 'fenced', 'cleaned')
)
"""


def upgrade() -> None:
    texts = ("job", "owner", "project", "site", "profile", "reason")
    op.create_table(
        "charge",
        sa.Column("allocation", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        sa.Column("completed", sa.Boolean(), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("ended", "waited", "ran", "core_seconds")),
        sa.PrimaryKeyConstraint("allocation", name="pk_charge"),
    )
    op.create_index("ix_charge_ended", "charge", ["ended"])
    op.execute(OVER)
