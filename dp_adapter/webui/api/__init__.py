"""Routes beside the WebUI's own API."""
