"""Each instance is watched from when it is added until it is gone: who the instances are, and whether they can be used."""
