"""What chaos.py and soak.py share: a fleet of stand-ins with a kvproxy before it, clients that check, faults, verdicts."""
