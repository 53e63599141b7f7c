"""Replay of agents' sessions: traces -> schedule (pure) -> real processes in real containers -> report."""
