"""The answers to operators are structs, made of what the rooms below show. Pure."""
