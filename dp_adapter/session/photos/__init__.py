"""Photos of a request → persons and their features."""
