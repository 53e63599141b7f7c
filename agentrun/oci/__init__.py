"""What engines and backends say, and the handoff to a backend. Light."""
