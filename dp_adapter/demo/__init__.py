"""The demo: a real portrait through the whole pathway on a tiny untrained base."""
