"""The tables, as the newest migration leaves them. A test compares the two, and the columns with the records' fields.

Columns bear the names of the records' fields. Parts with an inner structure are JSON text; what is searched for is a
column of its own. `alive` says what still has to be looked after, so that finding it costs nothing for the finished.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

REVISION = "0018"
"""The newest migration: what a store that is up to date says of itself."""

ALONE, MEMBER = "\"group\" = ''", "\"group\" != ''"
"""Of jobs: in no group, in one. Queries say so in these very words, for by them the database finds the index."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""`installation`: this installation's id. `last_job`: the number of the newest job or group ever made, deleted ones
included."""

job = Table(
    "job",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", Integer, nullable=False, unique=True),  # of the id: the order of creation
    Column("idempotency_key", Text, nullable=True),
    Column("alive", Boolean, nullable=False),  # not final, or to be deleted
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("destination", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("image", Text, nullable=False),
    Column("image_digest", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("state", Text, nullable=False),
    Column("wish", Text, nullable=False),
    Column("reason", Text),
    Column("message", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("exit_code", Integer),
    Column("ended", Float),
    Column("attempts", Integer, nullable=False),
    Column("excluded", Text, nullable=False),
    Column("recover", Integer, nullable=False),
    Column("group", Text, nullable=False, server_default=text("''")),
    Column("member", Text, nullable=False, server_default=text("''")),
    Column("pauses", Text, nullable=False, server_default=text("'[]'")),
    Column("service", Text),
    Column("version", Integer, nullable=False),
    UniqueConstraint("owner", "project", "idempotency_key"),
    Index(None, "state", "number"),
    Index("ix_job_alone", "number", sqlite_where=text(ALONE), postgresql_where=text(ALONE)),
    Index(
        "ix_job_group",
        "group",
        "state",
        "exit_code",
        "number",
        sqlite_where=text(MEMBER),
        postgresql_where=text(MEMBER),
    ),
    Index("ix_job_member", "group", "member", unique=True, sqlite_where=text(MEMBER), postgresql_where=text(MEMBER)),
    Index("ix_job_ended", "ended", sqlite_where=text("ended IS NOT NULL"), postgresql_where=text("ended IS NOT NULL")),
    Index("ix_job_alive", "number", sqlite_where=text("alive = 1"), postgresql_where=text("alive")),
)

group = Table(
    "job_group",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", Integer, nullable=False, unique=True),  # of the id; no job has the same
    Column("idempotency_key", Text, nullable=True),
    Column("alive", Boolean, nullable=False),  # not final, or to be deleted
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("destination", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("spec", Text),
    Column("image", Text),
    Column("image_digest", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("wish", Text, nullable=False),
    Column("made", Integer, nullable=False),
    Column("rounds", Text, nullable=False, server_default=text("'{}'")),
    Column("blueprint", Text),
    Column("standing", Text, nullable=False, server_default=text("'{}'")),
    Column("aborted", Integer),
    Column("rescue", Text, nullable=False),
    Column("exit_code", Integer),
    Column("message", Text, nullable=False),
    Column("ended", Float),
    Column("version", Integer, nullable=False),
    UniqueConstraint("owner", "project", "idempotency_key"),
    Index("ix_job_group_alive", "number", sqlite_where=text("alive = 1"), postgresql_where=text("alive")),
)

node = Table(
    "node",
    metadata,
    Column("group", Text, ForeignKey("job_group.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("run", Text, nullable=False),
)
"""The nodes of workflows: where each is, as JSON."""

vm = Table(
    "vm",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("job", Text, ForeignKey("job.id"), nullable=False, index=True),
    Column("epoch", Integer, nullable=False),
    Column("version", Integer, nullable=False),
)

pilot_job = Table(
    "pilot_job",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
)

allocation = Table(
    "allocation",
    metadata,
    Column("id", Text, primary_key=True),
    Column("alive", Boolean, nullable=False),  # not cleaned
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("job", Text, ForeignKey("job.id"), nullable=False, index=True),
    Column("vm", Text, ForeignKey("vm.id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("pilot_job", Text, ForeignKey("pilot_job.name"), nullable=False, index=True),
    Column("site", Text, nullable=False),
    Column("times", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("why", Text),
    Column("note", Text, nullable=False),
    Column("exit", Text),
    Column("restore", Text, nullable=False, server_default=text("''")),
    Column("cpu", Text, nullable=False, server_default=text("''")),
    Column("copied", Boolean, nullable=False, server_default=false()),
    Column("saving", Text),
    Column("segment", Text),
    Column("ahead", Boolean, nullable=False, server_default=false()),
    Column("go", Boolean, nullable=False, server_default=false()),
    Column("expected", Text),
    Column("version", Integer, nullable=False),
    UniqueConstraint("vm", "epoch"),  # the last line of defence of "never two guests"
    Index("ix_allocation_alive", "job", sqlite_where=text("alive = 1"), postgresql_where=text("alive")),
)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("id", Text, primary_key=True),
    Column("alive", Boolean, nullable=False),  # something is left of it
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("job", Text, ForeignKey("job.id"), nullable=False, index=True),
    Column("entry", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("executed", Float, nullable=False),
    Column("made", Float, nullable=False),
    Column("since", Float, nullable=False),
    Column("checkpoint", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("copy", Text, nullable=False, server_default=text("'none'")),
    Column("version", Integer, nullable=False),
    Index("ix_checkpoint_alive", "job", sqlite_where=text("alive = 1"), postgresql_where=text("alive")),
)

event = Table(
    "event",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("job", Text, nullable=False),  # no foreign key: the events outlive the job
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Index(None, "job", "sequence"),
    sqlite_autoincrement=True,  # a sequence number is never given twice, whatever is pruned
)

ledger = Table(
    "ledger",
    metadata,
    Column("job", Text, ForeignKey("job.id"), primary_key=True),
    Column("owner", Text, nullable=False),  # owner, project and version are those of the job it was written with
    Column("project", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("wall", Float, nullable=False),
    Column("rows", Text, nullable=False),
    Column("cpu", Text, nullable=False),
    Column("hypervisor", Text, nullable=False),
    Column("boot", Text, nullable=False, server_default=text("''")),
    Column("operations", Text, nullable=False, server_default=text("'[]'")),
)

charge = Table(
    "charge",
    metadata,
    Column("allocation", Text, primary_key=True),  # no foreign keys: what was used stays used when the job is deleted
    Column("job", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("completed", Boolean, nullable=False),
    Column("ended", Float, nullable=False, index=True),
    Column("waited", Float, nullable=False),
    Column("ran", Float, nullable=False),
    Column("core_seconds", Float, nullable=False),
    Column("double", Float, nullable=False, server_default=text("0")),
)

policy = Table(
    "policy",
    metadata,
    Column("version", Integer, primary_key=True),  # every version stays: decisions were taken by it
    Column("at", Float, nullable=False),
    Column("by", Text, nullable=False),
    Column("policy", Text, nullable=False),
)

denial = Table(
    "denial",
    metadata,
    Column("site", Text, primary_key=True),  # no foreign key: sites are known that are configured nowhere
    Column("at", Float, primary_key=True),
    Column("jobs", Integer, nullable=False),
)

site = Table(
    "site",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("user", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("agent", Text, nullable=False, server_default=text("''")),
    Column("ssh_config", Text, nullable=False, server_default=text("''")),
    Column("known_hosts", Text, nullable=False),
    Column("workdir", Text, nullable=False),
    Column("scratch", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("max_jobs", Integer, nullable=False),
    Column("options", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("draining", Boolean, nullable=False, server_default=false()),
    Column("probed", Text),
    Column("probed_at", Float, nullable=False, server_default=text("0")),
    Column("version", Integer, nullable=False),
)

answer = Table(
    "answer",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("project", Text, primary_key=True),
    Column("key", Text, primary_key=True),  # the Idempotency-Key
    Column("fingerprint", Text, nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("status", Integer, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("location", Text, nullable=False),
    Column("body", Text, nullable=False),
)
"""What requests were answered, for those that are repeated."""

token = Table(
    "token",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("digest", Text, nullable=False),  # of the secret, which is kept nowhere
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("outbound", Boolean, nullable=False),
    Column("revoked", Float),
    Column("version", Integer, nullable=False),
)
