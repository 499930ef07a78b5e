"""The catalog: every checkpoint that was seen, where it lies, what it holds, and what people wrote about it.

The only user of SQLAlchemy, and the only place with SQL.
"""

from modelhub.catalog.store import Catalog, Root

__all__ = ["Catalog", "Root"]
