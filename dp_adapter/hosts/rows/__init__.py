"""Which rows a call of a UNet has, and where in the picture they lie."""
