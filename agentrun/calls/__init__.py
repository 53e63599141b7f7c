"""One call's life on disk: its slot, its state, its record. Light."""
