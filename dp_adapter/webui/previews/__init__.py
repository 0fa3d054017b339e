"""Regions that follow faces while a picture forms, and the live preview."""
