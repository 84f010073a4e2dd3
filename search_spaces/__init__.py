"""What could be tried, one file a space."""
