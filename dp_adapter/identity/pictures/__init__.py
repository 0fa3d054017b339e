"""Picture files and the photos of a request: read, kept, restored, drawn on."""
