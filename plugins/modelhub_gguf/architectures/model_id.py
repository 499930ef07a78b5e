"""What a model's id says of it: organisation, base name, size, version, fine-tune, by the conventions of names on the Hub.

The rules are those of llama.cpp's converter (``gguf-py/gguf/metadata.py``, ``get_model_id_components``), so that the same
directory gets the same ``general.*`` keys.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_ENCODING = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_KEEP_CASE = re.compile(r"^(v\d+(?:\.\d+)*|\d.*)$")
MAX_ID = 4096


class Parts(NamedTuple):
    """The parts of an id; "" where it does not say."""

    name: str = ""
    organization: str = ""
    basename: str = ""
    finetune: str = ""
    version: str = ""
    size_label: str = ""


def title(text: str) -> str:
    """Words capitalised, except versions and what is capitalised already: "tiny-llama-v1.0" is "Tiny Llama v1.0"."""
    words = text.strip().replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _KEEP_CASE.match(word) else word for word in words)


def parts_of(model_id: str, parameters: int = 0) -> Parts:
    """The parts of ``organisation/name`` or ``name``. ``parameters``: how many the model has (0: not known): a size in the name
    that is far from it is a context length, say, and no size. A sentence is a name alone."""
    if not model_id or len(model_id) > MAX_ID:
        return Parts()
    if " " in model_id:
        return Parts(name=model_id)
    organization, _, full = model_id.partition("/") if "/" in model_id else ("", "", model_id)
    if organization.startswith("."):
        organization = ""
    words = [word for word in full.split("-") if word]
    kinds = [_kinds(words, place, parameters) for place in range(len(words))]
    sizes = [place for place, kind in enumerate(kinds) if "size" in kind]
    if any(any(letter.isdecimal() for letter in words[place]) for place in sizes):
        for place in sizes:  # a number is a better size than a word
            if words[place].isalpha():
                kinds[place].discard("size")
    _mark_basename(words, kinds)

    def join(kind: str, but: str = "") -> str:
        return "-".join(word for word, found in zip(words, kinds, strict=True) if kind in found and but not in found)

    size = "-".join(dict.fromkeys(word for word, found in zip(words, kinds, strict=True) if "size" in found))
    finetune, version, basename = join("finetune"), join("version", "basename"), join("basename")
    if not (size or finetune or version):
        basename = ""  # too ambiguous
    return Parts(full, organization, basename, finetune, version, size)


def _kinds(words: list[str], place: int, parameters: int) -> set[str]:
    """What a word of a name may be. A size's spelling is normalised in ``words``."""
    word = words[place]
    if _VERSION.fullmatch(word):
        return {"version"}
    if _ENCODING.fullmatch(word):
        words[place] = word.upper()
        return {"type"}
    if place and _SIZE.fullmatch(word):
        return _size_kinds(words, place, parameters)
    return {"finetune"} if place and _FINETUNE.fullmatch(word) else set()


def _size_kinds(words: list[str], place: int, parameters: int) -> set[str]:
    word = words[place].replace("_", ".")
    if word[-1].isdecimal():  # bloom-7b1
        word = f"{word[:-2]}.{word[-1]}{word[-2]}"
    if len(word) > 1 and word[-2].isdecimal() and word[-1] in "kmbt":
        word = word[:-1] + word[-1].upper()
    kinds: set[str] = set()
    if parameters:
        try:
            said = float(word[:-1]) * 1000 ** " KMBT".find(word[-1])
        except ValueError:
            said = None
        if said is not None and abs(said - parameters) > 7 * parameters // 8:
            kinds.add("finetune")
            word = word[:-1] + word[-1].lower()
    words[place] = word
    return kinds or {"size"}


def _mark_basename(words: list[str], kinds: list[set[str]]) -> None:
    """The words at the start that are nothing else are the base name; what follows and is nothing else, a fine-tune."""
    at_start = True
    for word, kind in zip(words, kinds, strict=True):
        if at_start and ((not kind and word[0].isalpha()) or "version" in kind):
            kind.add("basename")
        else:
            at_start = False
            if not kind:
                kind.add("finetune")
    for kind in reversed(kinds):  # a version at its end is none of it
        if "basename" in kind and len(kind) > 1:
            kind.discard("basename")
        else:
            break


def size_label(total: int, shared: int, expert: int, experts: int) -> str:
    """ "1.1B", or "8x7B" for experts (``gguf-py/gguf/utility.py``, ``size_label``)."""
    return f"{experts}x{_rounded(shared + expert)}" if experts else _rounded(total)


def _rounded(count: int) -> str:
    for limit, scale, unit in ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (0.0, 1e-3, "K")):
        if count > limit or not limit:
            scaled = count * scale
            digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
            return f"{scaled:.{digits}f}{unit}"
    return ""
