"""One file a family of checkpoints: what its keys are, its networks, its recipe for tokens."""
