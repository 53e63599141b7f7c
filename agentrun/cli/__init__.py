"""`agentrunctl`: what people type. It may import anything; nothing imports it."""
