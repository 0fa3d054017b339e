"""The extension inside AUTOMATIC1111's WebUI and its forks. The only package that knows them."""
