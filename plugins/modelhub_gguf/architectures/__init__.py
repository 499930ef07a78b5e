"""Architectures: how a Hugging Face checkpoint and a GGUF file say the same model. Each is a row of a table, and no code.

`rows` holds the table; `records` says what a row is made of; `config`, `keys`, `names` and `transforms` are what rows are put
together from; `carry` applies one to a checkpoint's tensors, either way; `general` makes the keys that describe any model.
"""

from __future__ import annotations
