"""What calls of a kind use, and what to suggest from it."""
