"""Phase one of detection: whom to ask about a file, by its name's end and its first bytes. Asks nobody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from modelhub.declared import Format
from modelhub.files import File


class Router:
    """The formats, by who may be asked about what."""

    def __init__(self, formats: Iterable[Format]) -> None:
        self.formats = sorted(formats, key=lambda item: item.name)
        asked = [item for item in self.formats if item.detect]
        self.directory = [item for item in self.formats if item.detect_directory]
        self.reaching = [item for item in self.directory if item.marks]
        self.anything = [item for item in asked if not item.suffixes and not item.magics]
        self.named = [item for item in asked if item.suffixes or item.magics]
        # By two letters, so that a name and a head are held against the few that may fit.
        self.suffixes: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self.magics: dict[bytes, list[tuple[bytes, int]]] = defaultdict(list)
        for place, item in enumerate(self.named):
            for suffix in item.suffixes:
                self.suffixes[suffix[-2:]].append((suffix, place))
            for magic in item.magics:
                self.magics[magic[:2]].append((magic, place))

    def candidates(self, file: File) -> list[Format]:
        """The formats to ask about a file, by name: those of its name's end, of its first bytes, and of anything."""
        name, places = file.name.lower(), set[int]()
        for end in (name[-2:], name[-1:]):
            for suffix, place in self.suffixes.get(end, ()):
                if name.endswith(suffix):
                    places.add(place)
        if self.magics:
            head = file.head
            for start in (head[:2], head[:1]):
                for magic, place in self.magics.get(start, ()):
                    if head.startswith(magic):
                        places.add(place)
        return self.anything + [self.named[place] for place in sorted(places)]


_routers: dict[tuple[int, ...], Router] = {}


def router_of(formats: Collection[Format]) -> Router:
    """The router of ``formats``, made once as long as they are the same."""
    key = tuple(map(id, formats))
    if key not in _routers:
        _routers.clear()
        _routers[key] = Router(formats)
    return _routers[key]
