"""Pure: which candidates there are for a leg, what giving it to each costs, and where it goes."""
