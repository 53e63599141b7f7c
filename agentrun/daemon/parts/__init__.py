"""The parts of agentrund: each is told about calls and does one thing about them."""
