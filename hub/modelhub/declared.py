"""What plugins declare, as frozen records: formats, codecs, ops, recipes, conversions, programs, combinations, checks; and the
events that they hear of.

The records that are exchanged when the work is done (tensors, metadata, pieces of a file) are in `modelhub.types`. Like those,
these carry ``api = 1`` and grow only by fields with defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from modelhub.types import Args, Columns, Detection, Finding, Metadata, Rejected, Tensor, Value, WriteOptions, Writer

if TYPE_CHECKING:
    from modelhub.files import Checkpoint, File, Listing
    from modelhub.table import Table

Records: TypeAlias = "Iterable[Tensor | Columns | Metadata | Finding]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A checkpoint format: how to tell it, how to read its table, how to lay one out.

    ``detect(file)`` and ``detect_directory(listing)`` answer with a `Detection`, a `Rejected`, or None for "not mine". The core
    asks ``detect`` about files whose name ends in one of ``suffixes`` or whose head starts with one of ``magics``
    (with neither declared: about every file).
    ``read(checkpoint)`` yields `Tensor` (or `Columns` of them), and where it has more to say `Metadata` and `Finding`; headers
    only, never weights. ``create(table, options)`` is a generator: it yields `Piece` in the order of the file and gets a
    `Placed` back for each `Put`. ``dtypes``: what it can store. ``sharing``: what two tensors may have in common in this
    container: ``none``, ``exact`` (ties) or ``any`` (views); the core stores a tie once where the format cannot hold it, and
    notes it in ``Metadata.stored``. ``extension`` ends the name of an output ("" where the output is a directory).
    ``marks``: names of files that tell a directory whose checkpoint reaches into directories below it, up to ``reach`` levels
    down: what it claims there is not looked at by itself.
    ``tensors``: whether its files hold any (trees and tokenizers do not: they are shown, and never converted).
    ``unavailable`` maps a capability (read, create) to what is missing, e.g. "pip install 'modelhub-registry[onnx]'".
    ``edit(metadata, changes)`` gives the metadata with keys set (name -> text) or removed (name -> None), as ``convert --set``
    asks for; ValueError says which key cannot be. Without it, ``stored`` is edited where the format keeps any.
    """

    name: str
    title: str
    suffixes: tuple[str, ...] = ()
    magics: tuple[bytes, ...] = ()
    dtypes: tuple[str, ...] = ()
    extension: str = ""
    sharing: Literal["none", "exact", "any"] = "none"
    detect: Callable[[File], Detection | Rejected | None] | None = None
    detect_directory: Callable[[Listing], Detection | Rejected | None] | None = None
    read: Callable[[Checkpoint], Records] | None = None
    create: Callable[[Table, WriteOptions], Writer] | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)
    edit: Callable[[Metadata, Mapping[str, str | None]], Metadata] | None = None
    marks: tuple[str, ...] = ()
    reach: int = 1
    tensors: bool = True
    api: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """Decodes one dtype to floats and, where it can, encodes it.

    ``decode(data, elements)``: a contiguous ``uint8`` array of whole blocks -> a float32 (or, where float32 would lose,
    float64) array of ``elements`` items. ``encode(values)``: a float32 or float64 array -> the ``uint8`` array of its blocks,
    rounded to nearest, ties to even. ``maximum`` is the largest finite magnitude (None: unbounded), against which the engine
    counts overflows.

    A dtype that packs rows (``DType.rowwise``) is encoded row by row: ``encode(values, importance)`` gets a C-contiguous float32
    array of shape (rows, columns), and float32 weights of shape (columns,) or None; it may run in several threads at once.
    ValueError says what cannot be encoded ("NaN at row 3, column 7"; "needs importance weights").
    ``transcode(data, dtype, columns, importance)``, where there is one, does decoding, encoding and measuring in one pass: from
    the ``uint8`` bytes of whole rows of ``dtype`` (where rows are not packed: of any elements, and only where the error is asked
    for) to (``uint8`` blocks, sums), with sums = (count, sum of squares of the source,
    sum of squared errors, sum of products source x result, sum of squares of the result, largest absolute error). It answers
    None for a ``dtype`` that it does not take.
    ``needs_importance``: it cannot be encoded without weights. ``prepare(use)``: called from the main thread before several
    threads decode ("decode"), encode ("encode"), or encode with importance ("weigh"); it compiles the kernels for that.
    """

    dtype: str
    decode: Callable[[Any, int], Any]
    encode: Callable[..., Any] | None = None
    maximum: float | None = None
    transcode: Callable[[Any, str, int, Any], tuple[Any, Sequence[float]] | None] | None = None
    needs_importance: bool = False
    prepare: Callable[[str], None] | None = None
    api: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """A node type of tensor expressions; see `modelhub.ops` for the contract of each field."""

    name: str
    rows: Callable[[Sequence[Any], Args, int, int], Any]
    infer: Callable[[Sequence[tuple[str, tuple[int, ...]]], Args], tuple[str, tuple[int, ...]]]
    needs: Callable[[Sequence[tuple[str, tuple[int, ...]]], Args, int, int], Sequence[tuple[int, int]]] | None = None
    memory: Callable[[Sequence[tuple[str, tuple[int, ...]]], Args, int], int] | None = None
    seekable: bool = True
    version: int = 1
    tile: int = 0
    api: int = 1


class Choice(NamedTuple):
    """What a recipe gives one tensor: a dtype, float32 importance weights for its columns (a value of shape (columns,), or of
    (matrices, columns) for a stack of matrices), and, where it is not what the recipe is named for, the reason in words."""

    dtype: str
    importance: Value | None = None
    fallback: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a recipe decided: choices by tensor name (a tensor that is not named keeps its dtype), what the writer is to note of
    it (merged into `Metadata.native`), and what the user should know, in words."""

    choices: Mapping[str, Choice]
    native: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """What the user asked of a recipe. ``importance``: path of an importance matrix, or ""; ``overrides``: (pattern, dtype)
    pairs, the first pattern (a regular expression, searched in the tensor's name) that matches wins; ``target_bits``: bits per
    weight, ``target_size``: bytes, for recipes that aim at one (0: not given)."""

    importance: str = ""
    overrides: tuple[tuple[str, str], ...] = ()
    target_bits: float = 0.0
    target_size: int = 0


Probe: TypeAlias = "Callable[[Tensor, str, Value | None], Any]"
"""``probe(tensor, dtype, importance)`` encodes a sample of a tensor's rows and gives the error sums
(`modelhub.engine.ErrorSums`, weighted by the importance where there is one)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Says which dtype each tensor of an output gets. ``name`` is what users type after the colon of ``--to FORMAT:RECIPE``.

    ``choose(tensor, table)`` returns a dtype's name, or None to keep the tensor's own. A recipe that needs to see the whole
    table, or the user's options, has ``assign(table, options)`` instead; one that needs to measure first, ``measure(table,
    options, probe)``. Both return an `Assignment`; ValueError says what is wrong with the options. One that gives
    other tensors than the model's (packed words beside their scales) has ``derive(table, options)``: the output's table, of which
    no dtype is changed any more. ``formats``: the formats it is
    for; empty means any that can store what it chooses.
    """

    name: str
    title: str
    choose: Callable[[Tensor, Table], str | None] | None = None
    formats: tuple[str, ...] = ()
    assign: Callable[[Table, RecipeOptions], Assignment] | None = None
    measure: Callable[[Table, RecipeOptions, Probe], Assignment] | None = None
    derive: Callable[[Table, RecipeOptions], Table] | None = None
    api: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """An edge between two formats that is more than a copy of tensors, yet reads no weights: a table derived from tables.
    ``keeps_names``: whether tensors are called what they were, so that a plain copy from elsewhere lacks nothing of it."""

    name: str
    source: str
    target: str
    derive: Callable[[Sequence[Table], Mapping[str, str]], Table]
    api: int = 1
    keeps_names: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A conversion that cannot be a table: ``run(checkpoint, output, options)`` writes ``output`` (a file, or a
    directory), in a worker; it may answer with a `ProgramResult`. ``requires``: modules that must be importable, which ``extra``
    brings. ``memory_estimate``: bytes it may take, given the source's table. ``recipe``: what users type after the colon to
    get this program (``title`` says what it does); "": it is how this pair is converted. ``options``: those that it takes
    (calibration, atol, rtol)."""

    name: str
    source: str
    target: str
    run: Callable[[Checkpoint, str, Mapping[str, str]], ProgramResult | None]
    requires: tuple[str, ...] = ()
    memory_estimate: Callable[[Table], int] | None = None
    api: int = 1
    recipe: str = ""
    title: str = ""
    extra: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """How what only changes a checkpoint (an adapter of the format ``source``) is put on it. ``derive(base, parts)``: the base's
    table as the parts, (table, scale), make it one after another, with the base's names and dtypes. It reads no weights.
    ValueError says what does not fit: ``derive`` is also called to find that out."""

    name: str
    source: str
    derive: Callable[[Table, Sequence[tuple[Table, float]]], Table]
    api: int = 1


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What a program has to say of its output. ``compared``: where both were run on the same inputs, for each of the model's
    outputs a name and how far they are apart (`modelhub.measure`). ``notes``: what the user should know, in words."""

    compared: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


Level: TypeAlias = Literal["structure", "safety", "digest", "values", "runnable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A validator. ``run(checkpoint, table)`` yields findings. ``requires``: modules that must be importable, else the check
    reports itself as not run and names ``extra``."""

    name: str
    level: Level
    formats: tuple[str, ...]
    run: Callable[[Checkpoint, Table], Iterable[Finding]]
    requires: tuple[str, ...] = ()
    extra: str = ""
    api: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a checkpoint: a scan indexed it, or found it changed or missing; it was verified (or that failed),
    or made by a conversion."""

    kind: Literal["indexed", "changed", "missing", "converted", "verified", "failed"]
    checkpoint: str
    path: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    api: int = 1
