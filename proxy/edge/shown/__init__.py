"""What operators are answered, as structs that are made of what the rooms below show; pure."""
