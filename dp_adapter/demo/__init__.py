"""The demo: real portraits through the whole pathway on the small base."""
