"""Where words stand in prompts, and prompts as text embeddings."""
