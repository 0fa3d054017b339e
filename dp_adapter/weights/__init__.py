"""Checkpoint files: opened without executing code, recognised by their keys."""
