"""A request in a picture's parameters, pasted back, and in X/Y/Z plots."""
