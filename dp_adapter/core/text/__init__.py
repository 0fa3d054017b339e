"""Identities on the text side."""
