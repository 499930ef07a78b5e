"""Which files are checkpoints, and of which format: one directory listing in, the checkpoints in it out.

Two phases: names and magic numbers choose whom to ask, then formats look at the content (`Format.detect`, `detect_directory`).
The ranking is the core's alone: confidence, then more files, then a directory over a file, then the format's name. Every file has
one owner; every answer stays visible in ``Found.claims``. What is inside a checkpoint is `modelhub.survey`'s business.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from modelhub.above import owned_from_above
from modelhub.declared import Format
from modelhub.errors import AmbiguousModel, CatalogError, FileProblem, ModelhubError, ModelNotFound, PluginError
from modelhub.files import File, Listing, list_directory
from modelhub.found import Claim, Found
from modelhub.ignore import is_unfinished_blob
from modelhub.router import Router, router_of
from modelhub.stores import as_manifest, behind, unfinished, untold
from modelhub.survey import Draft, draft_name, failure, rejected, survey
from modelhub.types import Detection, Finding, Rejected

MAX_FILES = 100_000
"""The most files that one checkpoint may claim."""


@dataclass(slots=True)
class Inspection:
    """What one look at a directory says. ``unknown``: names of files that no format knows. ``problems``: files that could not be
    read (check ``read``: nothing is known of them now), and plugins that failed on a file which they had no particular reason to
    be asked about (check ``plugin``)."""

    found: list[Found] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)


class Blame(NamedTuple):
    """What is known from an earlier attempt: doing ``stage`` (detect or read) of ``format`` on ``path`` ended the process."""

    stage: str
    format: str
    path: str


Mark = Callable[[str, str, str], None]
"""Told (stage, format, path) before plugin code runs on it, so that the culprit is known if this process does not survive."""


def _no_mark(stage: str, format_name: str, path: str) -> None:
    pass


Stats: TypeAlias = "Mapping[str, os.stat_result] | None"


class _Answer(NamedTuple):
    """One format's claim, with what the ranking needs."""

    rank: tuple[int, int, int, int]
    format: Format
    path: str
    files: tuple[str, ...]
    detection: Detection | None
    state: str
    reason: str
    plugin_failed: bool


def _formats(formats: Mapping[str, Format] | Iterable[Format]) -> list[Format]:
    return list(formats.values() if isinstance(formats, Mapping) else formats)


def inspect_listing(
    listing: Listing,
    formats: Mapping[str, Format] | Iterable[Format],
    *,
    only: Collection[str] | None = None,
    stats: Stats = None,
    blamed: Collection[Blame] = (),
    mark: Mark = _no_mark,
    by_itself: bool = False,
) -> Inspection:
    """The checkpoints of one directory, read as far as their tables. What a checkpoint of a directory above it owns is left to
    that one, unless the directory is to be seen ``by_itself``.

    ``only``: names of files to look at; a checkpoint is reported when one of its files is among them, so that a caller with
    changed files names all the files of the checkpoints they belonged to. ``stats`` by name saves a second stat of each file.
    Formats that are ``blamed`` for a path are not let near it again: the path is indexed as invalid.
    """
    chosen = _formats(formats)
    look = _Look(listing, router_of(chosen), only, blamed, mark)
    if not by_itself:
        look.leave(owned_from_above(listing.path, look.router.reaching, look.claim))
    try:
        return look.run(stats)
    finally:
        listing.close()


class _Look:
    """One inspection of one listing."""

    def __init__(
        self, listing: Listing, router: Router, only: Collection[str] | None, blamed: Collection[Blame], mark: Mark
    ) -> None:
        self.listing = listing
        self.router = router
        self.only = None if only is None else frozenset(only)
        self.blamed = frozenset(blamed)
        self.mark = mark
        self.result = Inspection()
        self.owned: set[str] = set()
        self.asked = False
        self.prefix = listing.path.rstrip("/") + "/"

    def run(self, stats: Stats) -> Inspection:
        listing, result = self.listing, self.result
        directory = [answer for answer in self._directory_answers() if not self.owned.intersection(answer.files)]
        winner = directory[0] if directory else None
        if winner and winner.files:
            self.owned.update(winner.files)
            if self._wanted(winner.files):
                self._report(winner, directory, stats)
        groups: list[list[_Answer]] = []
        contested: set[str] = set()
        for name in listing.files if self.only is None else [name for name in listing.files if name in self.only]:
            path = self.prefix + name
            if path in self.owned or path in contested:
                continue
            answers = self._look_at(name, stats)
            if answers:
                groups.append(answers)
                contested.update(file for answer in answers for file in answer.files)
        if groups:
            self._settle(groups, stats)
            for path in sorted(contested - self.owned):  # named by a claim that lost
                name = path[len(self.prefix) :]
                if name in listing.files and (self.only is None or name in self.only):
                    self._settle([self._look_at(name, stats)], stats)
        result.unknown = [name for name in result.unknown if self.prefix + name not in self.owned]
        if winner and not winner.files:
            rest = tuple(self.prefix + name for name in result.unknown)
            if self._wanted(rest):
                self._report(winner._replace(files=rest), directory, stats)
                result.unknown = []
        return result

    def leave(self, files: Iterable[str]) -> None:
        """These files are somebody else's: they are neither looked at nor unknown."""
        self.owned.update(files)

    def claim(self, item: Format, listing: Listing) -> tuple[str, ...]:
        """What the checkpoint of a format owns that is the directory ``listing``; nothing where it is none."""
        self.mark("detect", item.name, listing.path)
        try:
            answer = item.detect_directory(listing) if item.detect_directory else None
        except Exception:  # noqa: BLE001 - the look at that directory says what is wrong
            return ()
        return tuple(answer.files) if isinstance(answer, Detection | Rejected) else ()

    def _look_at(self, name: str, stats: Stats) -> list[_Answer]:
        """Ask about one file, and report it. Claims on several files are returned instead: others may want them too.

        A format that makes groups answers for the group whichever member it is asked about; so a file that is claimed alone can
        be settled at once, which is the usual case.
        """
        path = self.prefix + name
        with File(path, self.listing.files[name], self.listing.files, asked=self.asked) as file:
            answers = self._file_answers(file)
            if answers is None:
                return []
            if not answers:
                self.result.unknown.append(name)
            elif answers[0].files != (path,):
                return answers
            else:
                self.owned.add(path)
                self._report(answers[0], answers, stats, file)
        return []

    def _settle(self, groups: list[list[_Answer]], stats: Stats) -> None:
        """Give the files that several claims may want to the best of them."""
        order = sorted(
            ((answer, answers) for answers in groups for answer in answers), key=lambda pair: pair[0].rank, reverse=True
        )
        for answer, answers in order:
            if answer.files[0] not in self.owned and answer.path not in self.owned:
                self.owned.update(answer.files)
                self._report(answer, answers, stats)

    def _wanted(self, files: tuple[str, ...]) -> bool:
        """Whether a directory's claim is to be reported: with ``only``, where one of its files is named, or where none of them
        stands in this very directory and this is the look that has the directory's first file."""
        if self.only is None:
            return True
        start = len(self.prefix)
        here = [path[start:] for path in files if "/" not in path[start:]]
        return any(name in self.only for name in here) or (not here and next(iter(self.listing.files), None) in self.only)

    # --- asking ---------------------------------------------------------------------------------------------------

    def _directory_answers(self) -> list[_Answer]:
        path = self.listing.path
        answers = []
        for item in self.router.directory:
            answer = self._ask(item, path, item.detect_directory, self.listing, True)
            if answer:
                answers.append(answer)
        return sorted(answers, key=lambda answer: answer.rank, reverse=True) if len(answers) > 1 else answers

    def _file_answers(self, file: File) -> list[_Answer] | None:
        """What the formats say, the best first; None where the file cannot be read."""
        answers = []
        try:
            candidates = self.router.candidates(file)
            for item in candidates:
                answer = self._ask(item, file.path, item.detect, file, False)
                if answer:
                    answers.append(answer)
        except (OSError, FileProblem) as error:
            self._unreadable(file.path, error)
            return None
        return sorted(answers, key=lambda answer: answer.rank, reverse=True) if len(answers) > 1 else answers

    def _ask(self, item: Format, path: str, detect: Any, subject: Any, is_directory: bool) -> _Answer | None:
        if self.blamed and Blame("detect", item.name, path) in self.blamed:
            reason = f"the plugin of {item.name} crashed or hung while it looked at this file"
            return self._broken(item, path, "invalid", reason, 1, is_directory, True)
        self.mark("detect", item.name, path)
        try:
            answer = detect(subject)
            if answer is None:
                return None
            if type(answer) is Detection:
                files = self._claimed(answer, path)
                rank = (answer.confidence, 1, len(files), int(is_directory))
                return _Answer(rank, item, path, files, answer, "", "", False)
            if type(answer) is Rejected:
                broken = self._broken(item, path, answer.state, answer.reason, answer.confidence, is_directory, False)
                return broken._replace(files=self._claimed(answer, path)) if answer.files else broken
            raise PluginError(f"detect() answered with a {type(answer).__name__}, expected Detection, Rejected or None")
        except FileProblem as error:
            return self._broken(item, path, error.state, str(error), 50, is_directory, False)
        except OSError as error:
            if not is_directory:
                raise
            self._unreadable(path, error)
            return None
        except Exception as error:  # noqa: BLE001 - whatever plugin code raises is this file's trouble only
            state, reason = failure(item.name, error)
            if is_directory or item in self.router.anything:  # it is asked about everything: no reason to think this is its own
                self.result.problems.append(Finding("plugin", "error", reason, file=path))
                return None
            return self._broken(item, path, state, reason, 1, is_directory, True)

    def _broken(
        self, item: Format, path: str, state: str, reason: str, confidence: int, is_directory: bool, plugin_failed: bool
    ) -> _Answer:
        files = () if is_directory else (path,)
        return _Answer((confidence, 0, 1, int(is_directory)), item, path, files, None, state, reason, plugin_failed)

    def _claimed(self, answer: Detection | Rejected, path: str) -> tuple[str, ...]:
        """The claimed files, absolute, checked to lie inside the directory and to be there."""
        if len(answer.files) == 1 and answer.files[0] == path:
            return (path,)
        if not 0 < len(answer.files) <= MAX_FILES:
            raise PluginError(f"a {type(answer).__name__} names {len(answer.files)} files, expected 1 to {MAX_FILES}")
        files = tuple(dict.fromkeys(os.path.join(self.listing.path, name) for name in answer.files))
        for name in files:
            if not name.startswith(self.prefix) or "/../" in name or name.endswith("/.."):
                raise PluginError(f"a {type(answer).__name__} names {name}, which lies outside {self.listing.path}")
        return files

    # --- answering ------------------------------------------------------------------------------------------------

    def _report(self, answer: _Answer, answers: list[_Answer], stats: Stats, file: File | None = None) -> None:
        sizes, gone = self._sizes(answer.files)
        is_directory = bool(answer.rank[3])
        detection = answer.detection
        primary = answer.path if is_directory else answer.files[0]
        draft = Draft(
            format=answer.format,
            path=primary,
            files=tuple(path for path in answer.files if path in sizes) if gone else answer.files,
            sizes=sizes,
            claims=tuple(Claim(other.format.name, other.rank[0], other.reason) for other in answers),
            name=(detection.name if detection else "") or draft_name(primary, is_directory),
            missing=(*(detection.missing if detection else ()), *gone),
        )
        if file is not None and file.path in sizes:
            draft.opened = {file.path: file}
        if stats is not None:
            start = len(self.prefix)
            times = [stats[path[start:]].st_mtime_ns for path in draft.files if path[start:] in stats]
            draft.modified_ns = max(times) if times and len(times) == len(draft.files) else None
        for other in answers:
            if other.plugin_failed:
                severity: Any = "error" if other is answer or not detection else "warning"
                draft.findings.append(Finding("plugin", severity, other.reason, file=os.path.basename(other.path)))
        blamed = self.blamed and Blame("read", answer.format.name, primary) in self.blamed
        if blamed:
            reason = f"the plugin of {answer.format.name} crashed or hung while it read this"
            draft.findings.append(Finding("plugin", "error", reason, file=os.path.basename(primary)))
        try:
            if not detection:
                found = rejected(draft, answer.state, answer.reason)
            elif blamed:
                found = rejected(draft, "invalid", reason)
            else:
                self.mark("read", answer.format.name, primary)
                found = survey(draft)
        except OSError as error:
            self._unreadable(primary, error)
            return
        self.result.found.append(found)

    def _unreadable(self, path: str, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.result.problems.append(Finding("read", "error", f"{path} cannot be read: {reason}", file=path))

    def _sizes(self, files: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
        """Sizes by path, and the names of claimed files that are not there."""
        sizes: dict[str, int] = {}
        gone = []
        start = len(self.prefix)
        for path in files:
            size = self.listing.files.get(path[start:])
            if size is None:
                try:
                    info = os.stat(path)
                except OSError:
                    info = None
                if info is None or not stat_module.S_ISREG(info.st_mode):
                    gone.append(path[start:])
                    continue
                size = info.st_size
            sizes[path] = size
        return sizes, gone


def inspect_path(
    path: str,
    formats: Mapping[str, Format] | Iterable[Format],
    *,
    mark: Mark = _no_mark,
    listed: Callable[[str], Listing] = list_directory,
) -> Found:
    """The checkpoint at ``path``: a file (then it alone, or the group of shards it belongs to), or a directory that is one or
    holds just one. `ModelNotFound` where there is none, `AmbiguousModel` where a directory holds several. ``listed`` lists the
    directory that a file lies in."""
    path = os.path.abspath(path)
    chosen = _formats(formats)
    try:
        info = os.stat(path)
        is_directory = stat_module.S_ISDIR(info.st_mode)
        listing = list_directory(path) if is_directory else listed(os.path.dirname(path))
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path} does not exist") from error
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror}") from error
    if is_directory:
        return _inspect_directory(path, listing, chosen, mark)
    if not stat_module.S_ISREG(info.st_mode):
        raise ModelNotFound(f"{path} is neither a regular file nor a directory")
    stored = behind(path) if "/manifests/" in path else None
    if stored:
        manifest, name = stored
        if not manifest.told_by:
            return untold(manifest, name)
        blob = os.path.join(manifest.blobs, manifest.told_by)
        return as_manifest(inspect_path(blob, chosen, mark=mark, listed=listed), manifest, name)
    name = os.path.basename(path)
    unwhole = os.path.basename(os.path.dirname(path)) == "blobs" and is_unfinished_blob(os.fsencode(name))
    # The user named this file: a directory's claim over it does not count.
    router = Router(chosen)
    router.directory = []
    look = _Look(listing, router, [name], (), mark)
    look.asked = True
    result = look.run(None)
    if unwhole and not result.problems:
        return unfinished(path, result.found[0] if result.found else None)
    if not result.found:
        for problem in result.problems:
            raise PluginError(problem.message) if problem.check == "plugin" else ModelhubError(problem.message)
        raise ModelNotFound(f"{path} is not a checkpoint of a known format", "`modelhub plugins` lists the formats")
    return result.found[0]


def _inspect_directory(path: str, listing: Listing, formats: list[Format], mark: Mark) -> Found:
    result = inspect_listing(listing, formats, mark=mark, by_itself=True)  # the user named it
    whole = [item for item in result.found if item.path == path]
    if whole:
        return whole[0]
    if len(result.found) > 1:
        names = ", ".join(os.path.basename(item.path) for item in result.found[:3])
        raise AmbiguousModel(f"{path} holds {len(result.found)} checkpoints ({names}, ...)", "name one of them")
    if not result.found:
        raise ModelNotFound(
            f"there is no checkpoint of a known format in {path}", "`modelhub scan` looks into sub-directories as well"
        )
    return result.found[0]
