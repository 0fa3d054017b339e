"""The frozen UNet with a trainable adapter at its text attentions."""
