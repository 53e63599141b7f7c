"""The test VM tool: builds a Debian guest with qemu and runs commands in it."""
