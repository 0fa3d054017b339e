"""ID-EA (arXiv 2507.11990): an identity trained for one person."""
