"""Finished calls: the database, taking records in, keeping, asking."""
