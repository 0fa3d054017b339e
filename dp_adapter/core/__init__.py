"""The method itself: torch only, no settings, no host, no files."""
