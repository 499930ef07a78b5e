"""What a model computes, asked of transformers and of llama.cpp: tiny random models with real small tokenizers, converted, loaded
in both, compared. What each family's tests share.

`tiny` saves a model that transformers builds; `convert` takes it to GGUF as a user does; `same_logits` (or `same_embeddings`)
asserts what must hold of any family.
"""

from __future__ import annotations

import copy
import io
import logging
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from modelhub.cli.app import run

VOCABULARY = 384
PROMPTS = ((5, 17, 33, 250, 90), (301, 7), (44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 200, 201), (9,))
"""Token ids, below any tiny model's vocabulary. Lengths from one token to more than a sliding window of the tests'."""
TOP = 10
CLOSE = 0.01
"""How far a log-probability may be off: what the reference converter itself reaches."""


def tiny(
    directory: Path, model_class: str, config: dict[str, Any], *, dtype: str = "float32", seed: int = 0, tokenizer: str = "bpe"
) -> Any:
    """A random model of transformers' class ``model_class``, saved with its tokenizer (``bpe``, ``wordpiece`` or "" for none),
    and returned in evaluation mode. ``config``: arguments of its configuration class, over a small vocabulary."""
    import torch
    import transformers

    quiet()
    torch.manual_seed(seed)
    kind = getattr(transformers, model_class)
    config = copy.deepcopy(config)  # some of transformers' classes write into the dictionaries that they are given
    model = kind(kind.config_class(**{"vocab_size": VOCABULARY, **config})).eval()
    _stir(model)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(directory)
    if tokenizer:
        {"bpe": save_bpe, "wordpiece": save_wordpiece}[tokenizer](directory)
    return model


def quiet() -> None:
    """transformers reports every file that it saves."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _stir(model: Any) -> None:
    """Away from how a model is initialised, where norms are ones, biases zeros, and all tokens as likely: a mistake in any of
    them must show."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(20 if name.startswith("lm_head") else 5)
            else:
                weight.add_(torch.randn_like(weight) * 0.2)


def save_bpe(directory: Path) -> None:
    """A byte-level BPE of at most `VOCABULARY` tokens, trained on a little text, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "the quick brown fox jumps over the lazy dog and then the other quick foxes jump over that dog too " * 4
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=256
    ).save_pretrained(directory)


def save_wordpiece(directory: Path) -> None:
    """A WordPiece of letters and a few words, as BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *letters, *(f"##{letter}" for letter in letters), "the", "of", "and"]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(directory)


def convert(source: Path, output: Path, to: str = "gguf:f32") -> Path:
    """``modelhub convert``, as a user's command line runs it."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = run(["convert", str(source), "--to", to, "-o", str(output)])
    assert status == 0, said.getvalue()
    return output


# --- llama.cpp ----------------------------------------------------------------------------------------------------


@contextmanager
def served(path: Path, **settings: Any) -> Iterator[Any]:
    """A llama.cpp that holds the model. ``settings``: of ``xllamacpp.CommonParams``."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 128
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # by default 16 bits
    parameters.cpuparams.n_threads = 2
    for name, value in settings.items():
        setattr(parameters, name, value)
    server = xllamacpp.Server(parameters)
    # Its own loop answers this. Where it is told to end before that runs, it never does, and whoever drops it waits for ever.
    with urllib.request.urlopen(f"{server.listening_address}/slots", timeout=60) as answer:
        answer.read()
    try:
        yield server
    finally:
        del server


def next_tokens(
    path: Path, prompts: Sequence[Sequence[int]] = PROMPTS, top: int = TOP, **settings: Any
) -> list[list[tuple[int, float]]]:
    """For each prompt of token ids the ``top`` most likely next tokens and their log-probabilities, as llama.cpp says."""
    found = []
    with served(path, **settings) as server:
        for prompt in prompts:
            asked = {"prompt": list(prompt), "max_tokens": 1, "logprobs": top, "temperature": 0}
            # An end, or half a letter, would be no answer: "a" it is; the probabilities are those before it was forced.
            answer = server.handle_completions({**asked, "logit_bias": [["a", 10000.0]]})
            (token,) = answer["choices"][0]["logprobs"]["content"]
            found.append([(entry["id"], entry["logprob"]) for entry in token["top_logprobs"]])
    return found


def same_logits(model: Any, path: Path, prompts: Sequence[Sequence[int]] = PROMPTS, **settings: Any) -> None:
    """The same ten tokens come next, as likely, and in the same order (but for those that are as likely as each other)."""
    import torch

    for prompt, found in zip(prompts, next_tokens(path, prompts, **settings), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([list(prompt)])).logits[0, -1].float()
        wanted = torch.log_softmax(logits, -1)
        best = wanted.topk(TOP)
        close = [abs(wanted[token].item() - likely) for token, likely in found]
        assert max(close) < CLOSE, f"prompt {prompt}: log-probabilities are off by up to {max(close):.4f}"
        ranks = [abs(wanted[token].item() - likely) for (token, _), likely in zip(found, best.values.tolist(), strict=True)]
        assert max(ranks) < CLOSE, f"prompt {prompt}: {found} come next, {best.indices.tolist()} were expected"


def same_embeddings(model: Any, path: Path, prompts: Sequence[Sequence[int]] = PROMPTS) -> None:
    """An encoder's embeddings of each prompt, the mean over its tokens, point the same way and are as long."""
    import torch
    import xllamacpp

    settings = {
        "embedding": True,
        "pooling_type": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN,
        "embd_normalize": -1,
    }
    with served(path, **settings) as server:
        for prompt in prompts:
            answer = server.handle_embeddings({"input": list(prompt)})
            found = np.array(answer["data"][0]["embedding"], np.float64).reshape(-1)
            with torch.no_grad():
                wanted = model(torch.tensor([list(prompt)])).last_hidden_state[0].mean(0).double().numpy()
            cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
            assert cosine > 0.9999, f"prompt {prompt}: the embeddings' cosine is {cosine:.6f}"
