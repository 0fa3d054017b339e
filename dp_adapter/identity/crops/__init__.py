"""What single families of adapters see of a photo: cut out, grey, without background, part by part."""
