"""A request is answered by legs: where they go, in which order, what is tried again, and what becomes of what they hold."""
