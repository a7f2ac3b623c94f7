"""Who the instances are: what was configured, and what an operator changed while kvproxy ran."""
