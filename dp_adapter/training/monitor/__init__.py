"""Monitoring of a run: curves, sample grids, the report."""
