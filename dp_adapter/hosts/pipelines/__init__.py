"""Running diffusers from files on disk."""
