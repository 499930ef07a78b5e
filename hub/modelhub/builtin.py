"""What the core itself registers, through the same hooks as any plugin: the plain codecs, the storage ops, the plain recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modelhub import codecs, dtypes, storage_ops, value_ops
from modelhub.declared import Codec, Op, Recipe
from modelhub.hookspecs import hookimpl
from modelhub.table import Table
from modelhub.types import Tensor


def _floats_as(target: str, min_dims: int = 0) -> Callable[[Tensor, Table], str | None]:
    """Every tensor of floats (also block-quantized ones) becomes ``target``; integers, masks and complex numbers stay, and so
    does what is stored beside the model (an optimizer's state)."""

    def choose(tensor: Tensor, table: Table) -> str | None:
        kind = dtypes.get(tensor.dtype).kind
        wanted = kind in ("float", "quantized") and len(tensor.shape) >= min_dims and tensor.view != "stored"
        return target if wanted else None

    return choose


RECIPES = (
    Recipe(name="f64", title="Floats as 64-bit floats", choose=_floats_as("F64")),
    Recipe(name="f32", title="Floats as 32-bit floats", choose=_floats_as("F32")),
    Recipe(name="f16", title="Floats as 16-bit floats (largest 65504)", choose=_floats_as("F16")),
    Recipe(name="bf16", title="Floats as bfloat16", choose=_floats_as("BF16")),
    Recipe(name="f8_e4m3", title="Matrices as 8-bit floats, E4M3 (largest 448); vectors stay", choose=_floats_as("F8_E4M3", 2)),
    Recipe(name="f8_e5m2", title="Matrices as 8-bit floats, E5M2 (largest 57344); vectors stay", choose=_floats_as("F8_E5M2", 2)),
)


@hookimpl
def modelhub_codecs() -> Iterable[Codec]:
    return codecs.PLAIN


@hookimpl
def modelhub_ops() -> Iterable[Op]:
    return (*storage_ops.OPS, *value_ops.OPS)


@hookimpl
def modelhub_recipes() -> Iterable[Recipe]:
    return RECIPES
