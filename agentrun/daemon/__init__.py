"""agentrund: finding and watching calls, and its parts."""
