"""An injection in the UNet of a host, for the duration of a ``with``."""
