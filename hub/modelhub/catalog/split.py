"""When it turns out late that a replaced model had only been moved away: its identity follows it, and what took its place becomes
a checkpoint of its own.

A file at a known place was another one than before, so the checkpoint there got a new version; then the file it had before is
found elsewhere. Tags, notes and what pins the old content go with that; versions, aliases, lineage and findings of what came
after stay where they were, with the new checkpoint.
"""

from __future__ import annotations

from modelhub.catalog.database import Writer

_COPIED = (
    "root,path,name,format,container,architecture,precision,dtypes,parameters,size,files,alone,tensors,state,reason,missing,"
    "quarantined,header,sha256,tensor_table,created_at,indexed_at,modified_at,derived_from,search"
)


def version_with(writer: Writer, checkpoint: int, header: bytes) -> int:
    """The latest replaced version of a checkpoint that had this header; 0 for none."""
    found = writer.value("SELECT max(number) FROM version WHERE checkpoint=? AND header=?", (checkpoint, header))
    return int(found or 0)


def split(writer: Writer, checkpoint: int, number: int, new: int, identity: str) -> None:
    """Give everything that came after version ``number`` of ``checkpoint`` to a checkpoint ``new``; ``checkpoint`` is what it was
    then, without files."""
    both = (new, number, checkpoint, number)
    writer.run(
        f"INSERT INTO checkpoint (key,id,version,{_COPIED}) SELECT ?,?,version-?,{_COPIED} FROM checkpoint WHERE key=?",
        (new, identity, number, checkpoint),
    )
    writer.run(
        "INSERT INTO description (checkpoint,metadata,stored) SELECT ?,metadata,stored FROM description WHERE checkpoint=?",
        (new, checkpoint),
    )
    for table in ("checkpoint_file", "finding"):
        writer.run(f"UPDATE {table} SET checkpoint=? WHERE checkpoint=?", (new, checkpoint))
    for table in ("alias", "lineage"):
        writer.run(f"UPDATE {table} SET checkpoint=?,version=version-? WHERE checkpoint=? AND version>?", both)
    since = "(SELECT replaced_at FROM version WHERE checkpoint=? AND number=?)"
    writer.run(f"UPDATE lineage SET parent=? WHERE parent=? AND created>{since}", (new, checkpoint, checkpoint, number))
    writer.run("UPDATE version SET checkpoint=?,number=number-? WHERE checkpoint=? AND number>?", both)
    writer.run(
        "UPDATE checkpoint SET version=?,sha256=(SELECT sha256 FROM version WHERE checkpoint=? AND number=?) WHERE key=?",
        (number, checkpoint, number, checkpoint),
    )
    writer.run("DELETE FROM version WHERE checkpoint=? AND number=?", (checkpoint, number))
