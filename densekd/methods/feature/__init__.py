"""Methods that compare feature maps."""
