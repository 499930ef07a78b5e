"""Jobs, what rules have had done, and the daemon; since when a model is missing, and what a source was."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("lineage", sa.Column("rule", sa.Text(), server_default="", nullable=False))
    op.add_column("lineage", sa.Column("parent_was", sa.Text(), server_default="", nullable=False))
    op.add_column("checkpoint", sa.Column("missing_since", sa.BigInteger(), nullable=True))
    op.execute(f"UPDATE checkpoint SET missing_since={time.time_ns()} WHERE missing<>0")
    op.create_index("ix_lineage_parent_sha256", "lineage", ["parent_sha256"], unique=False)
    op.create_index("ix_checkpoint_indexed_at", "checkpoint", ["indexed_at"], unique=False)
    op.create_table(
        "job",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=True),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("source", sa.LargeBinary(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("action", sa.LargeBinary(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), server_default="", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default="1", nullable=False),
        sa.Column("not_before", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=True),
        sa.Column("finished", sa.BigInteger(), nullable=True),
        sa.Column("owner", sa.Text(), server_default="", nullable=False),
        sa.Column("lease", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cancel", sa.Integer(), server_default="0", nullable=False),
        sa.Column("stage", sa.Text(), server_default="", nullable=False),
        sa.Column("done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output", sa.LargeBinary(), nullable=False),
        sa.Column("made", sa.Text(), server_default="", nullable=False),
        sa.Column("result", sa.Text(), server_default="", nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.Column("hint", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_job_checkpoint"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_job")),
        sa.UniqueConstraint("id", name=op.f("uq_job_id")),
    )
    op.create_index("ix_job_state", "job", ["state", "priority", "created"], unique=False)
    op.create_index("ix_job_checkpoint", "job", ["checkpoint"], unique=False)
    op.create_index("ix_job_output", "job", ["output"], unique=False)
    op.create_index("ix_job_finished", "job", ["finished"], unique=False)
    op.create_table(
        "job_log",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("job", KEY, autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["job.key"], name=op.f("fk_job_log_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_job_log")),
    )
    op.create_index("ix_job_log_job", "job_log", ["job"], unique=False)
    op.create_table(
        "dispatched",
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("action", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("modified", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_dispatched_checkpoint"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("checkpoint", "action", name=op.f("pk_dispatched")),
    )
    op.create_table(
        "daemon",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_daemon")),
    )
