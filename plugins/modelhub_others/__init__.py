"""Models of other tools for modelhub: told by their content and listed, so that nothing on a drive is a mystery, and not read.

What tells a row of the table (`modelhub_others.rows`) is from the tool's own schema or source; a name alone makes no claim.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, hookimpl

from modelhub_others import directories
from modelhub_others.rows import ROWS


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    for row in ROWS:
        yield Format(name=row.name, title=row.title, suffixes=row.suffixes, magics=row.magics, detect=row.detect)
    yield Format(name="ctranslate2", title="CTranslate2", detect_directory=directories.ctranslate2)
    yield Format(name="spacy", title="spaCy pipeline", detect_directory=directories.spacy)
