"""Alembic's environment: runs the migrations inside one explicit transaction, and checks the foreign keys before it commits.

SQLite alters most things by copying a table (batch mode), which needs its foreign keys off meanwhile.
"""

from alembic import context
from modelhub.catalog.database import WRITER_LOCK, Database
from modelhub.catalog.schema import metadata
from modelhub.errors import CatalogError


def run() -> None:
    database: Database = context.config.attributes["database"]
    with database.engine.connect() as connection:
        if database.path:
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
        # With a transaction begun already, Alembic begins none: all of the way up, or nothing.
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
        context.run_migrations()
        if database.path:
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if broken:
                connection.rollback()
                raise CatalogError(
                    f"the migration would break {len(broken)} references, first in table {broken[0][0]}; nothing was changed"
                )
        connection.commit()
        if database.path:
            connection.exec_driver_sql("PRAGMA foreign_keys=ON")


run()
