"""The huggingface plugin."""
