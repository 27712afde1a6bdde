"""Places that hold tensors."""
