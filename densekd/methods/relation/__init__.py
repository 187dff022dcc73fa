"""Methods that compare relations: between positions of a map, pixels of a class, images."""
