"""The contract suites, shipped, so that users can run them on their own files."""
