"""Masks over the UNet's grids, and regions that move."""
