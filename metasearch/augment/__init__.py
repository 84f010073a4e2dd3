"""Image operations on batches of tensors."""
