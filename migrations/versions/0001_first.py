"""The first catalog."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "content",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=True),
        sa.Column("sha256", sa.LargeBinary(), nullable=True),
        sa.Column("digested", sa.BigInteger(), nullable=True),
        sa.Column("digested_mtime", sa.BigInteger(), nullable=True),
        sa.Column("digested_inode", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_content")),
    )
    op.create_index(
        "ix_content_sha256",
        "content",
        ["sha256"],
        unique=False,
        sqlite_where=sa.text("sha256 IS NOT NULL"),
        postgresql_where=sa.text("sha256 IS NOT NULL"),
    )
    op.create_table(
        "root",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("search", sa.Text(), nullable=False),
        sa.Column("names", sa.Text(), nullable=True),
        sa.Column("offline", sa.Integer(), server_default="0", nullable=False),
        sa.Column("device", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("inode", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fstype", sa.Text(), server_default="", nullable=False),
        sa.Column("source", sa.Text(), server_default="", nullable=False),
        sa.Column("suspect", sa.BigInteger(), nullable=True),
        sa.Column("plugins", sa.Text(), server_default="", nullable=False),
        sa.Column("generation", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.Column("scanned", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_root")),
        sa.UniqueConstraint("path", name=op.f("uq_root_path")),
    )
    op.create_table(
        "tensor_digests",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("contents", sa.LargeBinary(), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_tensor_digests")),
        sa.UniqueConstraint("contents", name=op.f("uq_tensor_digests_contents")),
    )
    op.create_table(
        "tensor_names",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("patterns", sa.Text(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_tensor_names")),
        sa.UniqueConstraint("digest", name=op.f("uq_tensor_names_digest")),
    )
    op.create_table(
        "file",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("root", KEY, autoincrement=False, nullable=True),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime", sa.BigInteger(), nullable=False),
        sa.Column("inode", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.BigInteger(), nullable=False),
        sa.Column("missing", sa.Integer(), server_default="0", nullable=False),
        sa.Column("again", sa.Integer(), server_default="0", nullable=False),
        sa.Column("content", KEY, autoincrement=False, nullable=True),
        sa.ForeignKeyConstraint(["content"], ["content.key"], name=op.f("fk_file_content"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["root"], ["root.key"], name=op.f("fk_file_root"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_file")),
        sa.UniqueConstraint("root", "path", name=op.f("uq_file_root_path")),
    )
    op.create_index("ix_file_content", "file", ["content"], unique=False)
    op.create_index("ix_file_inode", "file", ["inode"], unique=False)
    op.create_table(
        "tensor_table",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("names", KEY, autoincrement=False, nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["names"], ["tensor_names.key"], name=op.f("fk_tensor_table_names"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_tensor_table")),
        sa.UniqueConstraint("digest", name=op.f("uq_tensor_table_digest")),
    )
    op.create_index("ix_tensor_table_names", "tensor_table", ["names"], unique=False)
    op.create_table(
        "checkpoint",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("root", KEY, autoincrement=False, nullable=True),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("container", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("precision", sa.Text(), nullable=False),
        sa.Column("dtypes", sa.Text(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("alone", sa.Integer(), nullable=False),
        sa.Column("tensors", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("missing", sa.Integer(), server_default="0", nullable=False),
        sa.Column("quarantined", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=True),
        sa.Column("tensor_table", KEY, autoincrement=False, nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("indexed_at", sa.BigInteger(), nullable=False),
        sa.Column("modified_at", sa.BigInteger(), nullable=False),
        sa.Column("derived_from", sa.Text(), nullable=True),
        sa.Column("search", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["root"], ["root.key"], name=op.f("fk_checkpoint_root"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tensor_table"], ["tensor_table.key"], name=op.f("fk_checkpoint_tensor_table"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_checkpoint")),
        sa.UniqueConstraint("id", name=op.f("uq_checkpoint_id")),
    )
    op.create_index("ix_checkpoint_root_path", "checkpoint", ["root", "path"], unique=False)
    op.create_index("ix_checkpoint_name", "checkpoint", ["name"], unique=False)
    op.create_index("ix_checkpoint_tensor_table", "checkpoint", ["tensor_table"], unique=False)
    op.create_table(
        "alias",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_alias_checkpoint"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_alias")),
    )
    op.create_index("ix_alias_checkpoint", "alias", ["checkpoint"], unique=False)
    op.create_table(
        "checkpoint_file",
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("file", KEY, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint"], ["checkpoint.key"], name=op.f("fk_checkpoint_file_checkpoint"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["file"], ["file.key"], name=op.f("fk_checkpoint_file_file"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("checkpoint", "position", name=op.f("pk_checkpoint_file")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_checkpoint_file_file", "checkpoint_file", ["file"], unique=False)
    op.create_table(
        "description",
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("stored", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_description_checkpoint"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("checkpoint", name=op.f("pk_description")),
    )
    op.create_table(
        "finding",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("tensor", sa.Text(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("recorded", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_finding_checkpoint"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_finding")),
    )
    op.create_index("ix_finding_checkpoint", "finding", ["checkpoint"], unique=False)
    op.create_table(
        "lineage",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("parent", KEY, autoincrement=False, nullable=True),
        sa.Column("parent_path", sa.LargeBinary(), nullable=False),
        sa.Column("parent_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("plugin", sa.Text(), nullable=False),
        sa.Column("plugin_version", sa.Text(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("errors", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_lineage_checkpoint"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["parent"], ["checkpoint.key"], name=op.f("fk_lineage_parent"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_lineage")),
    )
    op.create_index("ix_lineage_checkpoint", "lineage", ["checkpoint"], unique=False)
    op.create_index("ix_lineage_parent", "lineage", ["parent"], unique=False)
    op.create_table(
        "note",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_note_checkpoint"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_note")),
    )
    op.create_index("ix_note_checkpoint", "note", ["checkpoint"], unique=False)
    op.create_table(
        "tag",
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_tag_checkpoint"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("checkpoint", "name", name=op.f("pk_tag")),
    )
    op.create_index("ix_tag_name", "tag", ["name", "value"], unique=False)
    op.create_table(
        "version",
        sa.Column("checkpoint", KEY, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("precision", sa.Text(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=True),
        sa.Column("tensor_table", KEY, autoincrement=False, nullable=True),
        sa.Column("modified_at", sa.BigInteger(), nullable=False),
        sa.Column("indexed_at", sa.BigInteger(), nullable=False),
        sa.Column("replaced_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint"], ["checkpoint.key"], name=op.f("fk_version_checkpoint"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tensor_table"], ["tensor_table.key"], name=op.f("fk_version_tensor_table"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("checkpoint", "number", name=op.f("pk_version")),
    )
    op.create_index("ix_version_tensor_table", "version", ["tensor_table"], unique=False)
