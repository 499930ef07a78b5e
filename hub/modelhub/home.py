"""Where modelhub keeps its state: the home, the catalog, the configuration file. Flags beat environment beats ``config.toml``.

Nothing is created here, and nothing but ``config.toml`` is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from modelhub.errors import UsageError


def home() -> str:
    """``$MODELHUB_HOME``, else the platform's directory for user data. Absolute; it need not exist."""
    given = os.environ.get("MODELHUB_HOME")
    if given:
        return os.path.abspath(os.path.expanduser(given))
    import platformdirs  # only here: most services and tests set the variable

    return platformdirs.user_data_dir("modelhub", appauthor=False)


def config_path() -> str:
    """``config.toml`` in the home."""
    return os.path.join(home(), "config.toml")


def read_config() -> Mapping[str, Any]:
    """The configuration file as a mapping, empty where there is none. UsageError where it is not TOML or not text."""
    path = config_path()
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    import tomllib

    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "correct that line, or move the file away") from error


def catalog_url(flag: str | None = None) -> str:
    """The catalog's place: ``flag``, else ``$MODELHUB_CATALOG``, else ``catalog`` in ``config.toml``, else ``catalog.db`` in
    the home.

    A database URL comes back as it is; anything else is an absolute path. A relative path in ``config.toml`` is relative to the
    home.
    """
    given = flag or os.environ.get("MODELHUB_CATALOG")
    base = os.getcwd() if given else home()
    if not given:
        given = read_config().get("catalog") or "catalog.db"
        if not isinstance(given, str):
            raise UsageError(f"'catalog' in {config_path()} is not a text", "give a path or a database URL in quotes")
    return given if "://" in given else os.path.normpath(os.path.join(base, os.path.expanduser(given)))


def backups_path() -> str:
    """The directory of the catalog's backups."""
    return os.path.join(home(), "backups")
