"""kvproxy beside other routers: the same loads in turns, a core for the router, another for all else."""
