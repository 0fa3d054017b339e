"""The networks that see photos: found in the model folders, loaded on use, run where the host wants them."""
