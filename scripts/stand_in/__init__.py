"""Stand-in engines as processes: the fleet of real ones without a model, in a second."""
