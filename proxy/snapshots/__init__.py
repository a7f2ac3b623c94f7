"""What kvproxy knows of the engines' caches survives it, on local disk, in a directory that it alone writes
in.
"""
