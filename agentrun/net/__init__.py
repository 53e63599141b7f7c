"""Network rates of whole containers, by netlink, on the host's side of their interfaces."""
