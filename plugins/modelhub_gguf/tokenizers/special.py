"""Which tokens have a name (bos, eos, ...), which of them are put around a text, how it is normalized, and the chat templates:
the keys that llama.cpp's converter takes from the documents whatever the algorithm (``gguf-py/gguf/vocab.py``, ``SpecialVocab``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelhub_gguf.documents import Documents, flag, items, mapping, text, whole
from modelhub_gguf.fields import STRING, Field, array, boolean, string, u32
from modelhub_gguf.tokenizers.vocabulary import NAMED, token_text

_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # spelt so in the format (``gguf-py/gguf/constants.py``)
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
"""GGUF's keys for them, below ``tokenizer.ggml``. ``cls`` has none: llama.cpp takes bos for it."""


@dataclass(slots=True)
class Special:
    """``ids`` by name; ``names``: the texts that tokenizer_config.json gives them; ``add``: whether the token of that name is put
    around a text; ``templates`` by name, the main one is "default". None: nothing is said of it."""

    ids: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    lowercase: bool | None = None
    strip_accents: bool | None = None

    def fields(self) -> Iterator[tuple[str, Field]]:
        for name, number in self.ids.items():
            if name in _KEYS:
                yield f"tokenizer.ggml.{_KEYS[name]}", u32(number)
        for name in ("bos", "eos", "sep"):
            if name in self.add:
                yield f"tokenizer.ggml.add_{name}_token", boolean(self.add[name])
        yield from template_fields(self.templates)
        if self.lowercase is not None:
            yield "tokenizer.ggml.normalizer.lowercase", boolean(self.lowercase)
        if self.strip_accents is not None:
            yield "tokenizer.ggml.normalizer.strip_accents", boolean(self.strip_accents)


def template_fields(templates: Mapping[str, str]) -> Iterator[tuple[str, Field]]:
    """The keys of chat templates (``gguf_writer.py``, ``add_chat_template``): names are kept to letters, digits and
    underscores."""
    others: dict[str, str] = {}
    for name, template in templates.items():
        key = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
        if key and key != "default":
            others[key] = template
    for key, template in others.items():
        yield f"tokenizer.chat_template.{key}", string(template)
    if others:
        yield "tokenizer.chat_templates", array(STRING, list(others))
    if "default" in templates:
        yield "tokenizer.chat_template", string(templates["default"])


def special(documents: Documents, config: Mapping[str, Any], size: int) -> Special:
    """What the documents say of special tokens. Ids of ``size`` and more are left out: the model has no row for them."""
    found = Special()
    tokenizer = documents.json("tokenizer.json")
    settings = documents.json("tokenizer_config.json")
    names = {name: token_text((settings or {}).get(f"{name}_token")) for name in NAMED}
    added: dict[str, int] = {}
    if tokenizer is not None:
        _normalizer(mapping(tokenizer.get("normalizer")), found)
        for entry in map(mapping, items(tokenizer.get("added_tokens"))):
            if whole(entry.get("id")) is not None and isinstance(entry.get("content"), str):
                added.setdefault(entry["content"], entry["id"])
        _around(mapping(tokenizer.get("post_processor")), names, found, written=bool(settings))
    found.names = names
    found.templates = _templates(documents, settings or {})
    for name, content in names.items():
        wanted = flag((settings or {}).get(f"add_{name}_token"))
        if wanted is not None:
            found.add.setdefault(name, wanted)
        if content and added.get(content, size) < size:
            found.ids.setdefault(name, added[content])
    # llama.cpp takes the ids of config.json where the tokenizer's documents say nothing.
    inner = mapping(config.get("text_config"))
    for name in names:
        key = f"{name}_token_id"
        number = whole(config.get(key) if config.get(key) is not None else inner.get(key))
        if number is not None and number < size:
            found.ids.setdefault(name, number)
    return found


def _normalizer(normalizer: Mapping[str, Any], found: Special) -> None:
    steps = [normalizer, *map(mapping, items(normalizer.get("normalizers")))]
    for step in steps:
        kind = step.get("type")
        if kind == "Lowercase":
            found.lowercase = True
        elif kind == "StripAccents":
            found.strip_accents = True
        elif kind == "BertNormalizer":
            for key in ("lowercase", "strip_accents"):
                if key in step:
                    setattr(found, key, flag(step[key]))


def _around(processor: Mapping[str, Any], names: dict[str, str], found: Special, *, written: bool) -> None:
    """What the post-processor puts around a text. ``names``: the texts of the named tokens, which it may add to: what stands
    first is a bos (or cls), what stands last an eos (or sep). ``written``: there is a tokenizer_config.json, so names it leaves
    out are left out on purpose."""
    names["bos"] = names["bos"] or names["cls"]
    names["eos"] = names["eos"] or names["sep"]
    for step in map(mapping, items(processor.get("processors")) or [processor]):
        kind = step.get("type")
        if kind == "ByteLevel":
            found.add.setdefault("bos", False)
            found.add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            found.add.update(bos=True, eos=True, sep=True)
            for name, instead in (("cls", "bos"), ("sep", "eos")):
                token = items(step.get(name)) or [names[instead]]
                names[name] = names[name] or text(token[0])
        elif kind == "TemplateProcessing":
            _template(step, names, found, written=written)


def _template(step: Mapping[str, Any], names: dict[str, str], found: Special, *, written: bool) -> None:
    single = list(map(mapping, items(step.get("single"))))
    first = last = ""
    if len(single) > 1:
        if first := _special(single[0]):
            if not written:
                names["bos"] = first
            elif first not in (names["bos"], names["cls"]):
                names["bos"] = names["bos"] or first
                names["cls"] = names["cls"] or first
            found.add["bos"] = first in (names["bos"], names["cls"])
        if last := _special(single[-1]):
            if written and last != names["eos"]:
                # What ends a text is its eos; what was called so ends a turn.
                free = next((name for name in ("eot", "eom") if name not in names), "")
                if free and names["eos"]:
                    names[free] = names["eos"]
            names["eos"] = last
            found.add["eos"] = True
    pair = list(map(mapping, items(step.get("pair"))))
    if pair:
        inner = pair[1 if first and _special(pair[0]) == first else 0 : -1 if last and _special(pair[-1]) == last else None]
        middle = list(map(_special, inner[1:-1]))
        if middle and _sequence(inner[0]) == "A" and _sequence(inner[-1]) == "B":
            ends = (names["sep"], names["eos"])
            found.add["sep"] = (middle[0] in ends and not last) or (len(middle) == 2 and middle[1] in ends)
            if found.add["sep"] and not names["sep"]:
                names["sep"] = names["eos"]


def _special(entry: Mapping[str, Any]) -> str:
    return text(mapping(entry.get("SpecialToken")).get("id"))


def _sequence(entry: Mapping[str, Any]) -> str:
    return text(mapping(entry.get("Sequence")).get("id"))


def _templates(documents: Documents, settings: Mapping[str, Any]) -> dict[str, str]:
    written = settings.get("chat_template")
    if isinstance(written, str):
        return {"default": written}
    if isinstance(written, list):
        pairs = [(text(entry.get("name")), entry.get("template")) for entry in map(mapping, written)]
        return {name: template for name, template in pairs if name and isinstance(template, str)}
    return documents.chat_templates()
