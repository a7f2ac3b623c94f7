"""Access decides who asks and what they may do: by keys, origins and loopback."""
