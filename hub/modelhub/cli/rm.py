"""``modelhub rm``: forget models; delete their files only when asked to, after showing what goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option, model_argument
from modelhub.errors import ModelhubError, ModelNotFound, UsageError

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.model import Model


@dataclass(frozen=True)
class Deletion:
    """What deleting files would do. ``frees``: bytes that no other name of the same file keeps. ``kept``: files that other
    models use, and the model that does."""

    files: tuple[str, ...]
    frees: int
    kept: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        from modelhub.model import printable

        kept = [{"file": printable(file), "used_by": printable(name)} for file, name in self.kept]
        return {"files": [printable(file) for file in self.files], "frees": self.frees, "kept": kept}


@define(
    "rm",
    examples=[
        "modelhub rm old-model",
        "modelhub rm old-model --delete-files --dry-run",
        "modelhub rm 3fa8 77c1 --delete-files --yes",
    ],
)
@model_argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--delete-files", is_flag=True, help="Delete the files, too.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and do nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def command(models: tuple[str, ...], delete_files: bool, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Forgets the model with its aliases, tags and notes. Its files stay, and the next scan finds them anew, unless
    --delete-files is given: then the files are shown, with the space that this frees, and deleted once you agree."""
    with Session() as session:
        found = [session.model(reference) for reference in models]
        found = list({model.id or model.absolute_path: model for model in found}.values())
        for model in found:
            if model.id is None and not delete_files:
                raise ModelNotFound(
                    f"{model.absolute_path} is not in the catalog: there is nothing to forget", "--delete-files deletes its files"
                )
        deletion = plan_deletion(session.catalog, found) if delete_files else Deletion((), 0, ())
        if not as_json:
            _print(found, deletion, delete_files)
        if not dry_run:
            if delete_files and not yes:
                if not sys.stdin.isatty():
                    raise UsageError("deleting files needs your word", "--yes gives it where nobody can be asked")
                if not click.confirm(f"Delete {text.plural(len(deletion.files), 'file')}?", err=True):
                    return 1
            _delete(deletion, found)
            session.catalog.remove([model for model in found if model.id])
        if as_json:
            from modelhub.model import printable

            text.print_json(
                {
                    "removed": [model.id or printable(model.absolute_path) for model in found],
                    **deletion.to_json(),
                    "dry_run": dry_run,
                }
            )
    return 0


def plan_deletion(catalog: Catalog, models: Sequence[Model]) -> Deletion:
    """Which files go with ``models``: those that are there and that no other model in the catalog uses."""
    going = {model.id for model in models}
    wanted = {os.path.abspath(path): None for model in models for path in model.file_paths if os.path.lexists(path)}
    users = {
        path: other.name for other in catalog.models() if other.id not in going for path in other.file_paths if path in wanted
    }
    files = tuple(path for path in wanted if path not in users)
    names: dict[tuple[int, int], int] = {}
    frees = 0
    for path in files:
        info = os.lstat(path)
        inode = (info.st_dev, info.st_ino)
        names[inode] = names.get(inode, 0) + 1
        # Bytes come free with the last name of a file.
        if names[inode] == info.st_nlink:
            frees += info.st_size
    return Deletion(files, frees, tuple(users.items()))


def _print(models: Sequence[Model], deletion: Deletion, delete_files: bool) -> None:
    for model in models:
        text.line(f"{model.id or '(not in the catalog)'}  {model.name}  {model.absolute_path}")
    for file in deletion.files:
        text.line(f"  delete {file}")
    for file, name in deletion.kept:
        text.line(f"  keep   {file}: {name} uses it")
    if delete_files:
        text.line(f"{text.plural(len(deletion.files), 'file')}, {text.size(deletion.frees)} to be freed")
    sys.stdout.flush()


def _delete(deletion: Deletion, models: Sequence[Model]) -> None:
    """Delete the files, and the directories that were checkpoints and are empty now."""
    for path in deletion.files:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ModelhubError(
                f"{path} cannot be deleted: {error.strerror}", "what came before it is gone; its model is still listed"
            ) from error
    own = [model.absolute_path for model in models if os.path.isdir(model.absolute_path) and model.absolute_path != model.root]
    inside = {os.path.dirname(path) for path in deletion.files}
    for directory in sorted(
        {place for place in inside for base in own if place == base or place.startswith(base + "/")}, key=len, reverse=True
    ):
        try:
            os.rmdir(directory)
        except OSError:
            continue  # something else is in it
