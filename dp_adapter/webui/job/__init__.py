"""One job of a WebUI: what is put into its UNet, and taken out again."""
