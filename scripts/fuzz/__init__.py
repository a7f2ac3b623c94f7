"""Nonsense for kvproxy's socket: what is sent, how answers are judged, and the processes it all happens in."""
