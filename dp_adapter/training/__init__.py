"""Training of adapters: data, losses, the loop. Nothing of it is imported by the WebUI's extension."""
