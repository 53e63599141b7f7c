"""What Python lacks of the kernel: inotify, pidfds, the proc connector, locked memory, killing."""
