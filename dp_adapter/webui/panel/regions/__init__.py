"""The panel's regions: list, boxes, painted masks, preview."""
