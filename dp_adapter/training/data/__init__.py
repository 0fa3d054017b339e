"""Training pictures: one record, their shards, and batches by number."""
