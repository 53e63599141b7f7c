"""eBPF: load, pin and read agentrun's programs. Never on the hot path: importing ctypes costs 1.6 ms."""
