"""GGUF for modelhub: the files of llama.cpp, their block encodings, and the way there and back from a Hugging Face directory."""

from __future__ import annotations
