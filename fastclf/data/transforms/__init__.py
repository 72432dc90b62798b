"""What happens to an image: the specification, the augmentations, their sampling, the geometry of crops."""
