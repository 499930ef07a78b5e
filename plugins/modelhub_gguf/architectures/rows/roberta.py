"""RoBERTa, XLM-RoBERTa and CamemBERT, which to GGUF are BERTs. Facts: llama.cpp ``conversion/bert.py`` (``RobertaModel``,
``XLMRobertaModel``).

Their positions are counted from behind the padding's id, GGUF's from 0. On the way back they are BERTs (`bert`), which compute
the same.
"""

from __future__ import annotations

from dataclasses import replace

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.rows import bert
from modelhub_gguf.architectures.transforms import skip_rows

BERT = bert.ROWS[0]


def offset(config: Config) -> int:
    """Rows of the position embeddings that no token is ever given."""
    padding = config.find("pad_token_id")
    return 0 if padding is None else 1 + config.whole(padding, "pad_token_id")


def _complete(config: Config) -> None:
    if config.find("lora_adaptations"):
        raise UnsupportedFile("config.json: lora_adaptations are set, and GGUF's bert has none")
    rows, first = config.count("max_position_embeddings"), offset(config)
    if rows <= first:
        raise UnsupportedFile(f"config.json: max_position_embeddings is {rows}, of which {first} are not for tokens")
    config.values["max_position_embeddings"] = rows - first


def _row(model_type: str, *classes: str) -> Architecture:
    return replace(
        BERT,
        hf=classes,
        model_type=model_type,
        defaults={"": {**BERT.defaults[""], "pad_token_id": 1}},
        config=_complete,
        transforms={"position_embd": skip_rows(offset)},
        prefixes=("roberta.",),
        ignored=(*BERT.ignored, r"lm_head\..*"),
    )


ROWS = (
    _row("roberta", "RobertaModel", "RobertaForSequenceClassification", "RobertaForMaskedLM"),
    _row("xlm-roberta", "XLMRobertaModel", "XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM"),
    _row("camembert", "CamembertModel"),  # a RoBERTa, which the reference takes for a BERT: positions and all
)
