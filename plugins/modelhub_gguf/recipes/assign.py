"""From a mixture and the user's options to what each tensor becomes: type, weights, fallback; and what the header says of it."""

from __future__ import annotations

from collections.abc import Sequence

from modelhub import Assignment, Choice, RecipeOptions, Table, Tensor

from modelhub_gguf.fields import Field, u32
from modelhub_gguf.recipes.fallback import fit
from modelhub_gguf.recipes.file_types import QUANTIZATION_VERSION, Mixture
from modelhub_gguf.recipes.imatrix import ImportanceMatrix, Value, read_imatrix
from modelhub_gguf.recipes.mixtures import Chooser
from modelhub_gguf.recipes.model import EMBEDDINGS, OUTPUT, can_change, in_order, model_of
from modelhub_gguf.recipes.overrides import Overrides, compiled
from modelhub_gguf.types import BY_NAME

STARVED = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
"""Types of so few bits that without importance weights nothing sensible comes out (llama.cpp ``tensor_requires_imatrix``)."""

INDIFFERENT = ("Q8_0", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4")
"""Types whose encoders take no notice of importance weights (ggml ``ggml-quants.c``)."""

_SHOWN = 3


def assign_mixture(mixture: Mixture, table: Table, options: RecipeOptions) -> Assignment:
    """What ``llama-quantize`` makes of each tensor. ValueError for options that do not fit the mixture or the model."""
    if options.target_bits or options.target_size:
        raise ValueError("a fixed mixture has the size it has: gguf:auto takes --target-bpw and --target-size")
    matrix = read_imatrix(options.importance) if options.importance else None
    overrides = compiled(options.overrides)
    model = model_of(table, weighed=matrix is not None)
    chooser = Chooser(mixture, model)
    choices: dict[str, Choice] = {}
    for tensor in in_order(table.logical):
        if not can_change(tensor, model.architecture):
            continue
        asked = overrides.type_of(tensor.name)
        if asked:
            dtype, why = fit(asked, tensor.shape[-1])
        elif mixture.quantized:
            dtype, why = chooser.choose(tensor)
        else:
            dtype, why = mixture.base, ""
        choices[tensor.name] = Choice(dtype, weights_for(tensor, dtype, matrix, mixture.name), why)
    return Assignment(choices, native(mixture.number, matrix), notes(table, choices, matrix, overrides))


def weights_for(tensor: Tensor, dtype: str, matrix: ImportanceMatrix | None, recipe: str) -> Value | None:
    """The importance weights that a tensor's encoder gets. ValueError where it needs some and there are none."""
    if dtype == tensor.dtype or BY_NAME[dtype].block == 1 or dtype in INDIFFERENT:
        return None
    weights = matrix.weights(tensor) if matrix else None
    if (
        weights is None
        and tensor.name not in (*EMBEDDINGS, OUTPUT)
        and (dtype in STARVED or (dtype, recipe) == ("Q2_K", "q2_k_s"))
    ):
        where = f"{matrix.file} has none for {tensor.name}" if matrix else f"{tensor.name} has none"
        other = "q2_k does without" if recipe == "q2_k_s" else "another type does without"
        raise ValueError(f"{dtype} needs importance weights, and {where}: give --imatrix FILE as llama-imatrix makes it; {other}")
    return weights


def native(number: int, matrix: ImportanceMatrix | None) -> dict[str, Field]:
    """What a quantized file's header says of how it was made, in the order of ``llama-quantize``."""
    return {
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "general.file_type": u32(number),
        **(matrix.native() if matrix else {}),
    }


def notes(table: Table, choices: dict[str, Choice], matrix: ImportanceMatrix | None, overrides: Overrides) -> list[str]:
    """What the user should know: patterns that found nothing, tensors without weights, weights encoded a second time."""
    found = overrides.idle()
    changed = [tensor for tensor in table.logical if tensor.name in choices and choices[tensor.name].dtype != tensor.dtype]
    again = [tensor.name for tensor in changed if tensor.dtype in BY_NAME and BY_NAME[tensor.dtype].block > 1]
    if again:
        found.append(f"{names(again)}: quantized already, so that what was lost stays lost; an unquantized source does better")
    if matrix:
        without = [
            tensor.name
            for tensor in changed
            if choices[tensor.name].importance is None
            and BY_NAME[choices[tensor.name].dtype].block > 1
            and choices[tensor.name].dtype not in INDIFFERENT
        ]
        if without:
            found.append(f"the importance matrix does not weigh {names(without)}: encoded without")
    return found


def names(tensors: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    more = len(tensors) - _SHOWN
    return ", ".join(tensors[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
