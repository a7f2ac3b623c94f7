"""What is served: one file a group of paths."""
