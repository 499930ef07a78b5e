"""`PortableWatch`: `NativeWatch` for macOS and Windows, over watchdog's observer there. It tells of directories, and no more."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from modelhub.ignore import is_hidden_directory, is_partial
from modelhub.watch.pending import Hint

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent
    from watchdog.observers.api import BaseObserver

    from modelhub.watch.native import Notify

_QUIET = frozenset({"opened", "closed_no_write"})


class PortableWatch:
    """As `modelhub.watch.native.NativeWatch`. The system watches the tree as one, so that there is one watch, and no limit."""

    limited = False
    gone = False

    def __init__(self, root: str, notify: Notify, *, exclude: Sequence[str] = (), skip: Collection[bytes] = ()) -> None:
        self.root = root
        self.failed = ""
        self.ready = False
        self.blind = 0
        self._notify = notify
        self._place = os.fsencode(root)
        self._observer: BaseObserver | None = None
        self._thread = threading.Thread(target=self._begin, name=f"watch {root}", daemon=True)

    @property
    def alive(self) -> bool:
        observer = self._observer
        if self.failed or not os.path.isdir(self._place):
            return False
        return observer is None or (observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters))

    @property
    def watches(self) -> int:
        return int(self.ready)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait: float = 0.0) -> bool:
        observer = self._observer
        if observer is None:
            return True
        observer.stop()
        if wait > 0:
            observer.join(wait)
        return not observer.is_alive()

    def dispatch(self, event: FileSystemEvent) -> None:
        """What watchdog calls for each event, from its thread."""
        if event.event_type in _QUIET:
            return
        for given in (event.src_path, event.dest_path):
            path = os.fsencode(given)
            if not path or (is_partial(os.path.basename(path)) and not event.is_directory):
                continue
            inner = os.path.relpath(path, self._place).replace(os.fsencode(os.sep), b"/")
            parts = inner.split(b"/")
            if parts[0] == b".." or any(is_hidden_directory(part) for part in parts):
                continue
            if event.is_directory and event.event_type in ("created", "moved") and os.path.isdir(path):
                self._notify(self.root, Hint(b"" if inner == b"." else inner, True))
            else:
                self._notify(self.root, Hint(b"/".join(parts[:-1]), False))

    def _begin(self) -> None:
        from watchdog.observers import Observer

        try:
            observer = self._observer = Observer()
            observer.schedule(self, self.root, recursive=True)  # type: ignore[arg-type]
            observer.start()
        except OSError as error:
            self.failed = f"{error.strerror}: {error.filename or self.root}"
        except Exception as error:  # noqa: BLE001 - must show, and be made up for by a restart
            self.failed = f"{type(error).__name__}: {error}"
        self.ready = not self.failed
        self._notify(self.root, None)
