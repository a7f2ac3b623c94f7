"""Pure: what a client asked, as a value that every leg can be made from, and what an engine streams back."""
