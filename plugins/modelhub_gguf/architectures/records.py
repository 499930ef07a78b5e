"""What a row of the architecture table is made of. Nothing here does any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from modelhub import Tensor

if TYPE_CHECKING:
    from modelhub_gguf.architectures.config import Config
    from modelhub_gguf.architectures.given import Given

Source: TypeAlias = "tuple[str, ...] | Callable[[Config], Any]"
"""Where a key's value comes from: the first of these names that ``config.json`` has, or a function of the configuration. None:
the key is not written."""


class Key(NamedTuple):
    """A key of a GGUF header: its name (``{arch}`` stands for the architecture), the id of its value type, and its source. A list
    of numbers becomes an array, whatever the type says. ``back``: what ``config.json`` calls it on the way back; "" means the
    first name of its source, and for a computed one that it does not go back by itself."""

    name: str
    type: int
    source: Source
    back: str = ""


@dataclass(frozen=True, slots=True)
class Transform:
    """What is done to a tensor on its way to GGUF (``forward``) and back (``backward``), by name for messages. The tensor's
    ``name`` is GGUF's either way; of its fields only dtype, shape and value may change. ValueError says what does not fit."""

    name: str
    forward: Callable[[Tensor, Config], Tensor]
    backward: Callable[[Tensor, Config], Tensor]


@dataclass(frozen=True, slots=True)
class Regroup:
    """Several tensors that become several others: their number and order are those of the rule's names."""

    name: str
    forward: Callable[[Sequence[Tensor], Config], Sequence[Tensor]]
    backward: Callable[[Sequence[Tensor], Config], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Rule:
    """Names that do not map one to one: ``hf`` patterns that together become the ``gguf`` patterns. ``returns``: whether the way
    back goes through it; else it goes by the row's ``names`` for the same tensors."""

    hf: tuple[str, ...]
    gguf: tuple[str, ...]
    regroup: Regroup
    returns: bool = True


@dataclass(frozen=True, slots=True)
class Back:
    """What the way back needs beyond a row's keys and names. ``settings`` completes the ``config.json`` that the keys gave;
    `UnsupportedFile` where transformers' model cannot say what the header says. ``kind``: (class, model_type), where a header may
    mean several. ``spare``: GGUF names of tensors (globs) that are said in the configuration. ``prefix``: what the class puts
    before the names of its body."""

    settings: Callable[[Given, dict[str, Any]], None]
    kind: Callable[[Given], tuple[str, str]] | None = None
    spare: tuple[str, ...] = ()
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One row.

    ``name``: what GGUF calls it (``general.architecture``). ``hf``: the Hugging Face classes it is for, the one that the way back
    writes into ``config.json`` first; ``model_type``: what goes there with it. ``defaults``: what transformers fills in where
    ``config.json`` is silent, by ``model_type`` ("" for all): the reference converter writes those, and so must we.
    ``keys``: the header's hyper-parameters, in order.

    ``names``: Hugging Face name pattern -> GGUF name pattern, without ``.weight`` or ``.bias`` (which carry over; a pattern that
    ends in one stands for that tensor alone). ``{b}`` is a block's number, ``{e}`` an expert's: experts are stacked. Where
    several patterns have one GGUF name the first is written on the way back. ``rules``: names that are not one to one.
    ``transforms``: GGUF name pattern (a glob; with or without the suffix) -> what is done to such tensors; the first that fits.
    ``prefixes``: dropped from the front of names. ``ignored``: regular expressions for names that GGUF has no place for.
    ``full``: GGUF names (globs) that are F32 besides those that always are. ``generated``: tensors that no file holds.
    ``config``: changes the configuration before anything reads it.
    ``applies``: whether the row is for a ``config.json`` that names one of its classes, where several rows have the class.
    ``stacked``: GGUF name pattern (a glob) -> how many parts its ``{e}`` counts, where these are no experts.
    ``hints``: for the tokenizer ("pre": the pre-tokenizer where the documents cannot say).
    ``back``: how a header becomes a ``config.json`` again; None: there is no way back.
    """

    name: str
    hf: tuple[str, ...]
    model_type: str
    keys: tuple[Key, ...]
    names: Mapping[str, str]
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    generated: Callable[[Config], Iterable[Tensor]] | None = None
    config: Callable[[Config], None] | None = None
    applies: Callable[[Mapping[str, Any]], bool] | None = None
    stacked: Mapping[str, Callable[[Config], int]] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)
    back: Back | None = None
