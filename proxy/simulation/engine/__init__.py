"""The model of an engine: no sockets, no clock; time comes in with each call."""
