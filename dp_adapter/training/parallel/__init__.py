"""One step of training on one or many processes."""
