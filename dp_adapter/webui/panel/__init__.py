"""The accordion in txt2img and img2img."""
