"""What kvproxy knows of the engines' caches survives a restart, in a directory on local disk that it alone
writes to.
"""
