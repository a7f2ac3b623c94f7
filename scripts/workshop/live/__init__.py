"""Running things for the demo and the end-to-end tests: owned processes, free ports, a live kvproxy."""
