"""The ground of all: errors, paths, files, JSON, units, logs, limits. Light, as all that it is for."""
