"""Finding faces, embedding and comparing them, and the parts that they have."""
