"""Who asks, and what they may: keys, origins, loopback."""
