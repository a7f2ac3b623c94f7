"""What kvproxy knows of the engines' caches and of their speed survives a restart, in a directory on local
disk that it alone writes to.
"""
