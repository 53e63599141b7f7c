"""What holds on a host, and what to do about it."""
