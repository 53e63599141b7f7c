"""cgroup v2 and nothing else: the files, the layout of a container, what surrounds a call. Light."""
