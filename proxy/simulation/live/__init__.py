"""A stand-in engine on real sockets: HTTP, KV events and the side channel."""
