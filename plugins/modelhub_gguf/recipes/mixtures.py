"""The fixed mixtures: which type each tensor of a model gets, as ``llama-quantize`` gives it.

Facts: llama.cpp ``src/llama-quant.cpp`` (``llama_tensor_get_type``, ``llama_tensor_get_type_impl``), checked against
``llama-quantize --dry-run`` over many shapes (``tests/plugins/gguf``). A mixture is its base type, and exceptions by the role
of a tensor: tables below, by the mixture's name. The order in which tensors are gone through matters
(`modelhub_gguf.recipes.model`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from modelhub import Tensor

from modelhub_gguf.recipes.fallback import divides, fit, instead
from modelhub_gguf.recipes.file_types import Mixture
from modelhub_gguf.recipes.model import Model, layer_of, role_of

Rule = Callable[[Model, int], str]
"""The type for the tensor of a role in the given place: the layer, or how many of the role came before. "" is the base type."""

_EXPERTS_OF_MIXTRAL = 8
"""A model with just so many experts has attention that is small beside them: it gets more bits."""


def more_bits(place: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third one between them."""
    return place < layers // 8 or place >= 7 * layers // 8 or (place - layers // 8) % 3 == 2


def _few_values(dtype: str) -> Rule:
    return lambda model, place: dtype if model.sharing >= 4 else ""


def _first_eighth(dtype: str, *, without_importance: bool = False, with_importance: bool = False) -> Rule:
    def rule(model: Model, place: int) -> str:
        if (without_importance and model.weighed) or (with_importance and not model.weighed):
            return ""
        return dtype if place < model.layers // 8 else ""

    return rule


def _always(dtype: str) -> Rule:
    return lambda model, place: dtype


def _values_of_m(model: Model, place: int) -> str:
    return "Q6_K" if more_bits(place, model.values) else ""


def _down_of_m(model: Model, place: int) -> str:
    return "Q6_K" if more_bits(place, model.layers) else ""


def _down_of_q3_k_m(model: Model, place: int) -> str:
    if place < model.layers // 16:
        return "Q5_K"
    return "Q4_K" if model.architecture != "falcon" or more_bits(place, model.layers) else "Q3_K"


def _down_of_q4_k_m(model: Model, place: int) -> str:
    if model.architecture != "falcon":
        return _down_of_m(model, place)
    if place < model.layers // 16:
        return "Q6_K"
    return "Q5_K" if more_bits(place, model.layers) else "Q4_K"


VALUES: Mapping[str, Rule] = {
    "q2_k": lambda model, place: "Q4_K" if model.sharing >= 4 else "Q3_K",
    "q2_k_s": _few_values("Q4_K"),
    "q3_k_m": lambda model, place: "Q5_K" if place < 2 else "Q4_K",
    "q3_k_l": _always("Q5_K"),
    "iq4_nl": _few_values("Q5_K"),
    "iq4_xs": _few_values("Q5_K"),
    "q4_k_s": lambda model, place: "Q5_K" if place < 4 else "",
    "q4_k_m": _values_of_m,
    "q5_k_m": _values_of_m,
}
"""Attention's values, alone or fused with queries and keys."""

DOWN: Mapping[str, Rule] = {
    "q2_k": _always("Q3_K"),
    "q2_k_s": _first_eighth("Q4_K"),
    "q3_k_m": _down_of_q3_k_m,
    "q3_k_l": lambda model, place: "Q4_K" if model.architecture == "falcon" else "Q5_K",
    "iq4_nl": _first_eighth("Q5_K", without_importance=True),
    "iq4_xs": _first_eighth("Q5_K", without_importance=True),
    "q4_k_s": lambda model, place: _first_eighth("Q5_K")(model, place) if model.architecture != "falcon" else "",
    "q4_k_m": _down_of_q4_k_m,
    "q5_k_m": _down_of_m,
    "q4_0": _first_eighth("Q4_1", with_importance=True),
    "q5_0": _first_eighth("Q5_1", with_importance=True),
}
"""The feed-forward network's second matrix."""

ATTENTION_OUTPUT: Mapping[str, str] = {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}
ATTENTION_OUTPUT_OF_FALCON: Mapping[str, str] = {"q3_k_l": "Q4_K"}
ATTENTION_OUTPUT_OF_EIGHT = dict.fromkeys(("q2_k", "q3_k_s", "q3_k_m", "iq4_nl", "iq4_xs", "q4_k_s", "q4_k_m"), "Q5_K")
"""Beside eight experts."""


@dataclass(slots=True)
class Chooser:
    """Chooses types tensor by tensor, in `in_order`; ``seen`` counts those of each role that it was asked about."""

    mixture: Mixture
    model: Model
    seen: Counter[str] = field(default_factory=Counter)

    def choose(self, tensor: Tensor) -> tuple[str, str]:
        """The type of a tensor that can change, and, where its rows ask for another than the mixture's, why. ValueError where
        the model contradicts itself."""
        columns = tensor.shape[-1]
        role = role_of(tensor.name)
        if self.model.architecture == "glm5-next" and any(
            part in tensor.name for part in ("attn_q_a", "attn_q_b", "nextn.eh_proj")
        ):
            return fit("Q8_0", columns)
        if role == "output" or (role == "embeddings" and self.model.tied):
            return self._output(columns)
        return fit(self._by_role(role, tensor) or self.mixture.base, columns)

    def _output(self, columns: int) -> tuple[str, str]:
        base = self.mixture.base
        if base in ("MXFP4", "Q8_0") or self.model.architecture == "falcon":
            return fit("Q8_0", columns)
        if not divides(base, columns):
            dtype, _ = fit("Q8_0", columns)
            return dtype, instead(columns, "Q6_K", dtype)
        return fit("Q6_K", columns)

    def _by_role(self, role: str, tensor: Tensor) -> str:
        name, model = self.mixture.name, self.model
        if name == "mxfp4_moe":
            stacked = len(tensor.shape) > 2 and tensor.shape[-3] > 1
            experts = model.architecture != "bailingmoe3" or role in ("up", "gate", "down")
            return "MXFP4" if stacked and experts else "Q8_0"
        match role:
            case "embeddings":
                return "Q4_K" if name in ("tq1_0", "tq2_0", "q2_0") else ""
            case "values":
                return self._values()
            case "keys":
                return "Q8_0" if model.experts == _EXPERTS_OF_MIXTRAL else ""
            case "down":
                place = self._place(role, tensor.name)
                return DOWN[name](model, place) if name in DOWN else ""
            case "attention output":
                if model.architecture == "falcon":
                    return ATTENTION_OUTPUT_OF_FALCON.get(name, "")
                return (ATTENTION_OUTPUT_OF_EIGHT if model.experts == _EXPERTS_OF_MIXTRAL else ATTENTION_OUTPUT).get(name, "")
        return ""

    def _values(self) -> str:
        name, model = self.mixture.name, self.model
        place = self.seen["values"]
        self.seen["values"] += 1
        if model.experts == _EXPERTS_OF_MIXTRAL:
            return "Q8_0"
        dtype = VALUES[name](model, place) if name in VALUES else ""
        if model.heads_of_70b and (dtype or self.mixture.base) in ("Q3_K", "Q4_K"):
            return "Q5_K"
        return dtype

    def _place(self, role: str, name: str) -> int:
        """The layer of a feed-forward tensor. Experts may be stored one by one, and not all layers have them: there the name
        tells, elsewhere they are counted."""
        place = self.seen[role]
        self.seen[role] += 1
        if self.model.experts <= 1:
            return place
        layer = layer_of(name)
        if not 0 <= layer < self.model.layers:
            raise ValueError(
                f"tensor {name}: its name says layer {layer}, the model has {self.model.layers}: is its block_count right?"
            )
        return layer
