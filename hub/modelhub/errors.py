"""Every error a user can meet, each with its exit status and a hint of what to do next.

The command line prints ``message`` and ``hint`` on one line and exits with ``exit_status``; ``--json`` prints
``{"error": {"code", "message", "hint"}}``. Plugins raise the three `FileProblem` classes while they parse; nothing
else they raise reaches a user as more than "the plugin failed on this file".
"""

from __future__ import annotations

from typing import ClassVar


class ModelhubError(Exception):
    """What is wrong; ``hint`` says what to do about it. Exit status 3: it could not be done."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[ModelhubError], tuple[str, str]]:
        return type(self), (self.message, self.hint)


class UsageError(ModelhubError):
    """The command line itself is wrong (an unknown field, a malformed expression)."""

    code = "usage"
    exit_status = 2


class ModelNotFound(ModelhubError):
    """No model answers to this reference."""

    code = "not_found"


class AmbiguousModel(ModelhubError):
    """Several models answer to this reference."""

    code = "ambiguous"


class CatalogError(ModelhubError):
    """The catalog cannot be opened, is newer than the program, is damaged, or lies where it must not."""

    code = "catalog"


class ConversionError(ModelhubError):
    """A conversion could not be planned or carried out; nothing was written under the real name."""

    code = "conversion"


class OutputExists(ConversionError):
    """The destination is there already, and ``--force`` was not given."""

    code = "exists"


class VerificationError(ConversionError):
    """What was written is not what was read; the output was thrown away."""

    code = "verification"


class OutputsDiffer(ConversionError):
    """A model that was made computes something else than its source, by more than the user allowed; it was thrown away. Exit
    status 1: the answer is no."""

    code = "outputs_differ"
    exit_status = 1


class TemporaryError(ModelhubError):
    """It cannot be done now, and perhaps it can later: a drive is away, a file is still being written."""

    code = "temporary"


class DriveAway(TemporaryError):
    """A model or its drive is not there. What failed for that is queued again once it is back."""

    code = "away"
    HINT: ClassVar[str] = "it is done once that is there again"

    def __init__(self, message: str, hint: str = HINT) -> None:
        super().__init__(message, hint)


class SourceChanged(TemporaryError):
    """A file changed while it was being read: what was made of it would be half old, half new."""

    code = "changed"


class Cancelled(ModelhubError):
    """Somebody had this job stopped. Exit status 130, as for Ctrl-C."""

    code = "cancelled"
    exit_status = 130


class MissingCapability(ModelhubError):
    """A library that this work needs is not installed; the hint names the extra that brings it."""

    code = "missing_extra"


class PluginError(ModelhubError):
    """A plugin broke its contract (a wrong record, an exception, a crash, a hang)."""

    code = "plugin"


class FileProblem(ModelhubError):
    """A file is not readable as its format. Raised by plugins while parsing; becomes the checkpoint's state."""

    code = "file"
    state: ClassVar[str] = "invalid"


class InvalidFile(FileProblem):
    """The bytes contradict the format: say what, where (tensor, offset), expected and found."""

    code = "invalid"
    state = "invalid"


class IncompleteFile(FileProblem):
    """The file ends before what its header declares, or a part that an index names is not there."""

    code = "incomplete"
    state = "incomplete"


class UnsupportedFile(FileProblem):
    """Known and intact, but not readable by this plugin: say which version or variant it is."""

    code = "unsupported"
    state = "unsupported"
