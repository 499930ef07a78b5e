"""The pytorch plugin."""
