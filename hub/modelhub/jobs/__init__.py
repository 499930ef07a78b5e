"""Work that takes long: carried out here or in a worker, kept in the catalog's queue, safe to kill at any instant."""
