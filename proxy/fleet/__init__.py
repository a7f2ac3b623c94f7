"""Pure: the instances, what runs on each, and what their circuits make of what was seen of them."""
