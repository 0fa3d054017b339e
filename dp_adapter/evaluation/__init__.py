"""Evaluation: what an adapter does to a model's pictures, measured by judges that did not condition it."""
