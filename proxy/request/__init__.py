"""What a client asked, as a value from which every leg can be made, and what an engine streams back. Pure."""
