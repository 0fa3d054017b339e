"""What one sees of a run: curves, sample grids, the report."""
