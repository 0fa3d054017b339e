"""Saved identities: what encoders saw in a person's photos, as a file under a name."""
