"""Which instances there are: those of the configuration, those of operators, and those that other sources
name.
"""
