"""Each host translates its own calls into sites, steps and rows, and lets the core decide."""
