"""The safetensors plugin."""
