"""The panel's photos: list, faces, thumbnails."""
