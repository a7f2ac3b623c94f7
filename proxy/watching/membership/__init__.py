"""Who the instances are: what was configured, what an operator changed while kvproxy ran, and what else names
some.
"""
