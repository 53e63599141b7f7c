"""agentrun: an OCI runtime for AI coding agents (a runc-compatible wrapper)."""

__version__ = "0.1.0"
