"""How a byte-level BPE cuts text into words before it merges (``tokenizer.ggml.pre``): from tokenizer.json's definition to
llama.cpp's name for it, and back.

llama.cpp knows pre-tokenizers by name (``src/llama-vocab.cpp``, ``llm_tokenizer_bpe``), and its converter finds the name by
hashing how a sample text is tokenized. Here the definition itself is read: its steps are brought to one spelling, and steps that
cut alike are one `Split`. Several names may cut alike; they differ in the model that they were made for, and in what llama.cpp
does besides (`IGNORE_MERGES`, `ADD_BOS`), so the choice among them follows from the architecture and a few telling tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from modelhub import UnsupportedFile

from modelhub_gguf.documents import items, mapping, text

_C = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_L = r"\p{L}\p{N}"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ASCII = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT, DIGITS, THREE = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"
PUNCTUATION = "<punctuation, contiguous>"
LLAMA3 = rf"{_C}|[^\r\n{_L}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s{_L}]+[\r\n]*|{_END}"
QWEN2 = rf"{_C}|[^\r\n{_L}]?\p{{L}}+|\p{{N}}| ?[^\s{_L}]+[\r\n]*|{_END}"
QWEN35 = rf"{_C}|[^\r\n{_L}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_END}"
MINICPM5 = rf"{_C}|[^\r\n{_L}]?\p{{L}}+|\p{{N}}+| ?[^\s{_L}]+[\r\n]*|{_END}"
SEED = rf"{_C}|[^\r\n{_L}]?\p{{L}}+|\p{{N}}| ?[^\s{_L}\r\n]+|{_END}"
EXAONE = rf"{_C}|[^\r\n{_L}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s{_L}]+[\r\n/]?|\s*[\r\n]+|\s+(?!\S)|\s+"
JAIS = (
    rf"{_C}|[^\r\n{_L}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s{_L}]+[\r\n]*|\s*[\r\n]+|"
    + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s{1}"
)
NO_CONTRACTIONS = rf"[^\r\n{_L}]?\p{{L}}+|\p{{N}}| ?[^\s{_L}]+[\r\n]*|{_END}"
TEKKEN = rf"[^\r\n{_L}]?{_UPPER}*{_LOWER}+|[^\r\n{_L}]?{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s{_L}]+[\r\n/]*|{_END}"
GPT4O = rf"[^\r\n{_L}]?{_UPPER}*{_LOWER}+{_C}?|[^\r\n{_L}]?{_UPPER}+{_LOWER}*{_C}?|\p{{N}}{{1,3}}| ?[^\s{_L}]+[\r\n/]*|{_END}"
AYA_DIGITS = r"\d{1,3}(?=(?:\d{3})*\b)"
DEEPSEEK3 = rf"{_ASCII}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_END}"
KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
NEWLINES = r"[\r\n]"
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113"
    "\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
DEEPSEEK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_ASCII_DIGITS = "[0-9][0-9][0-9]"


class Facts(NamedTuple):
    """What tells apart the names of one way to cut. ``nfc``: the text is normalized so; ``has(token)``: the vocabulary has it;
    ``spaces``: runs of spaces were added as tokens."""

    architecture: str
    ignore_merges: bool
    nfc: bool
    roberta: bool
    spaces: bool
    has: Callable[[str], bool]


Rule = tuple[str, Callable[[Facts], bool]]


def _for(*architectures: str) -> Callable[[Facts], bool]:
    return lambda facts: facts.architecture in architectures


def _has(token: str) -> Callable[[Facts], bool]:
    return lambda facts: facts.has(token)


def _else(_: Facts) -> bool:
    return True


_GLM = _for("chatglm", "glm4", "glm4moe", "glm-dsa", "deepseek2-ocr")
CUTS: dict[tuple[str, ...], tuple[Rule, ...]] = {
    (GPT2,): (
        ("modern-bert", _for("modern-bert")),
        ("exaone4", _for("exaone4")),
        ("jais", _for("jais")),
        ("roberta-bpe", lambda facts: facts.roberta),
        ("olmo", lambda facts: facts.nfc),  # GPT-NeoX's tokenizer, which MPT, OLMo, Pythia and StableLM share
        ("phi-2", lambda facts: facts.spaces or facts.architecture == "phi2"),
        ("gpt-2", _else),
    ),
    (DIGIT, GPT2): (
        ("starcoder", _for("starcoder2")),
        ("command-r", lambda facts: facts.nfc or facts.architecture in ("command-r", "cohere2")),
        ("exaone", _for("exaone")),
        ("codeshell", _for("codeshell")),
        ("refact", lambda facts: facts.has("<fim_prefix>") or facts.architecture in ("refact", "starcoder", "granite")),
        ("smollm", _else),
    ),
    (QWEN2,): (
        ("stablelm2", _for("stablelm")),
        ("bailingmoe2", _for("bailingmoe2")),
        ("bailingmoe", _for("bailingmoe")),
        ("hunyuan", _for("hunyuan-moe")),
        ("grok-2", _for("grok")),
        ("deepseek-r1-qwen", _has("<\uff5cbegin\u2581of\u2581sentence\uff5c>")),
        ("qwen2", _else),
    ),
    (LLAMA3,): (
        ("glm4", lambda facts: facts.ignore_merges and (_GLM(facts) or facts.has("<|observation|>"))),
        ("chatglm-bpe", lambda facts: _GLM(facts) or facts.has("<|observation|>")),
        ("falcon-h1", _for("falcon-h1")),
        ("lfm2", _for("lfm2", "lfm2moe")),
        ("falcon3", _has(">>TITLE<<")),
        ("llama-bpe", lambda facts: facts.ignore_merges),
        ("dbrx", _else),
    ),
    (QWEN35,): (("qwen35", _else),),
    (THREE, MINICPM5): (("minicpm5", _else),),
    (SEED,): (("seed-coder", _else),),
    (NO_CONTRACTIONS,): (("ufakzeka", _else),),
    (r"[^\n]+|[\n]+", QWEN2): (("laguna", _else),),
    (TEKKEN,): (("tekken", _else),),
    (GPT4O,): (("llama4", _for("llama4")), ("minimax-m2", _for("minimax-m2")), ("gpt-4o", _else)),
    (AYA_DIGITS, GPT4O): (("cohere2moe", _for("cohere2moe")), ("tiny_aya", _else)),
    (THREE, KANA, DEEPSEEK3): (
        ("hunyuan-dense", _for("hunyuan-dense")),
        ("hy_v4", _for("hy-v4")),
        ("deepseek-v3", _else),
    ),
    (NEWLINES, DEEPSEEK_LETTERS, DEEPSEEK_SIGNS, r"\s+$", HAN, DIGIT): (("deepseek-llm", _else),),
    (NEWLINES, r"\s?\p{L}+", r"\s?\p{P}+", HAN, DIGIT): (("deepseek-coder", _else),),
    (PUNCTUATION, GPT2, DIGITS, _ASCII_DIGITS): (("falcon", _else),),
    (BLOOM,): (("bloom", _else),),
    (BLOOM, DIGIT): (("viking", _else),),
    (EXAONE,): (("exaone-moe", _else),),
    (JAIS,): (("jais-2", _else),),
    (DIGITS, r"(?=(\d{3})+(?!\d))"): (("superbpe", _else),),
    (r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, _ASCII_DIGITS): (("default", _else),),
}
"""Ways to cut, step by step, and llama.cpp's names for them: the first whose rule holds. What marks a model was read from the
models' own documents and from the converter's list of them (``convert_hf_to_gguf_update.py``)."""

_ALIASES: dict[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3", "pixtral", "midm-2.0", "jina-v5-nano"), "llama-bpe"),
    "smaug-bpe": "dbrx",
    "glm5": "glm4",
    **dict.fromkeys(
        ("mpt", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "trillion", "granite-docling"),
        "gpt-2",
    ),
    **dict.fromkeys(("jina-v1-en", "jina-v2-code"), "roberta-bpe"),
    **dict.fromkeys(("minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(("kormo", "f2llmv2", "megrez", "solar-open", "llada-moe"), "qwen2"),
    **dict.fromkeys(("kanana2", "talkie"), "gpt-4o"),
    **dict.fromkeys(("poro-chat", "gpt3-finnish"), "bloom"),
    "joyai-llm": "deepseek-v3",
}
"""Names that cut as another does, and that no rule above chooses."""

STEPS: dict[str, tuple[str, ...]] = {name: steps for steps, rules in CUTS.items() for name, _ in rules}
STEPS.update({name: STEPS[like] for name, like in _ALIASES.items()})
"""The way each name cuts, as llama.cpp does it."""

_LIKE_LLAMA3 = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}
IGNORE_MERGES = frozenset(_LIKE_LLAMA3 | {"minicpm5", "youtu", "glm4", "glm5", "tekken", "granite-embed-multi-97m"})
"""Names for which llama.cpp takes a whole word that is a token before it looks at merges."""
ADD_BOS = frozenset(_LIKE_LLAMA3 | {"tekken", "chameleon"})
"""Names for which llama.cpp puts a bos before a text unless ``add_bos_token`` is there and says no."""
ROBERTA = frozenset({"roberta-bpe", "jina-v1-en", "jina-v2-code"})
"""Names for which llama.cpp puts a sep between two texts."""
NFC = frozenset({"qwen2", "deepseek-r1-qwen", "olmo", "mpt", "command-r", "modern-bert"})
"""Names of tokenizers that bring a text into this form first, which llama.cpp leaves to its caller."""


def name_of(tokenizer: Mapping[str, Any], architecture: str, has: Callable[[str], bool]) -> str:
    """llama.cpp's name for the way in which ``tokenizer`` (a tokenizer.json of a byte-level BPE) cuts text. `UnsupportedFile`
    shows the definition where there is none."""
    steps, odd = cut(mapping(tokenizer.get("pre_tokenizer")))
    normal, strange = _normalizers(mapping(tokenizer.get("normalizer")))
    rules = CUTS.get(steps) if not odd and not strange else None
    if rules is None:
        shown = ", then ".join(repr(step) for step in (*strange, *steps, *odd)) or "nothing"
        raise UnsupportedFile(
            f"tokenizer.json cuts text in a way that llama.cpp has no name for that is known here: {shown}",
            "if you know the name, give it: --set tokenizer.ggml.pre=NAME; 'default' loads, but tokenizes otherwise",
        )
    processor = mapping(tokenizer.get("post_processor"))
    kinds = [processor.get("type"), *(mapping(step).get("type") for step in items(processor.get("processors")))]
    facts = Facts(
        architecture,
        mapping(tokenizer.get("model")).get("ignore_merges") is True,
        normal,
        "RobertaProcessing" in kinds,
        any(set(text(mapping(entry).get("content"))) == {" "} for entry in items(tokenizer.get("added_tokens"))),
        has,
    )
    return next(name for name, rule in rules if rule(facts))


def cut(definition: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The steps of a pre-tokenizer in one spelling, and those that there is none for."""
    steps: list[str] = []
    odd: list[str] = []
    inner = items(definition.get("pretokenizers")) if definition.get("type") == "Sequence" else [definition]
    for step in map(mapping, inner):
        kind = step.get("type")
        pattern = mapping(step.get("pattern"))
        if kind == "ByteLevel":
            if step.get("use_regex") is not False:
                steps.append(GPT2)
        elif kind == "Digits":
            steps.append(DIGIT if step.get("individual_digits") is True else DIGITS)
        elif kind == "Punctuation" and step.get("behavior") == "Contiguous":
            steps.append(PUNCTUATION)
        elif kind == "Split" and _is_whole(step) and isinstance(pattern.get("Regex"), str):
            steps.append(canonical(pattern["Regex"]))
        elif kind == "Sequence":
            deeper = cut(step)
            steps += deeper[0]
            odd += deeper[1]
        else:
            odd.append(f"{kind}{dict(pattern) or ''}")
    return tuple(steps), tuple(odd)


def _is_whole(step: Mapping[str, Any]) -> bool:
    """Whether a Split keeps all of the text: what matches apart from what does not, or (its inverse) nothing but what matches."""
    inverse = step.get("invert") is True
    return step.get("behavior") == ("Removed" if inverse else "Isolated") or step.get("behavior") == "Isolated"


def _normalizers(definition: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether a normalizer brings text into the form NFC, and its steps that llama.cpp has no notation for."""
    steps = items(definition.get("normalizers")) if definition.get("type") == "Sequence" else [definition] if definition else []
    kinds = [text(mapping(step).get("type")) for step in steps]
    return "NFC" in kinds, tuple(f"normalizer {kind}" for kind in kinds if kind not in ("NFC", "NFKC", "NFD"))


_CONTRACTIONS = (
    "'(?i:[sdmt]|ll|ve|re)",
    "(?i:'s|'t|'re|'ve|'m|'d|'ll)",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "(?i:'(?:[sdmt]|ll|ve|re))",
)
_ENDS = ((r"|\s+$|\s*[\r\n]+|\s+(?!\S)|\s", f"|{_END}"), (r"|\s*[\r\n]+|\s+(?!\S)|\s", f"|{_END}"))


def canonical(regex: str) -> str:
    """A regular expression in the spelling of this module: characters for their escapes, English contractions in one way, and no
    possessive quantifiers, which change nothing where what follows cannot match what they hold."""
    regex = regex.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t").replace(r"\p{N}{1}", r"\p{N}")
    regex = _outside_classes(regex, lambda part: re.sub(r"([?*+]|\{\d+(?:,\d*)?\})\+", r"\1", part))
    for spelling in _CONTRACTIONS:
        regex = regex.replace(spelling, _C)
    regex = re.sub(r"\\s\*\[\\r\\n\](?=\||$)", lambda _: r"\s*[\r\n]+", regex)
    for ending, instead in _ENDS:
        if regex.endswith(ending):
            regex = regex.removesuffix(ending) + instead
    return regex


def _outside_classes(regex: str, change: Callable[[str], str]) -> str:
    """``regex`` with ``change`` applied to what stands outside of character classes."""
    parts = re.split(r"(\[(?:\\.|[^\]\\])*\])", regex)
    # A quantifier stands behind the class that it is for.
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def definition_of(steps: tuple[str, ...]) -> dict[str, Any]:
    """The pre-tokenizer of a tokenizer.json that cuts so, and maps what it cut to the characters of bytes."""
    inner: list[dict[str, Any]] = []
    for step in steps:
        if step == GPT2:
            inner.append(_bytes(use_regex=True))
        elif step in (DIGIT, DIGITS):
            inner.append({"type": "Digits", "individual_digits": step == DIGIT})
        elif step == PUNCTUATION:
            inner.append({"type": "Punctuation", "behavior": "Contiguous"})
        else:
            inner.append({"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False})
    if GPT2 not in steps:
        inner.append(_bytes(use_regex=False))
    return inner[0] if len(inner) == 1 else {"type": "Sequence", "pretokenizers": inner}


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
