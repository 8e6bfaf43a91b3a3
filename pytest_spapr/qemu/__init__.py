"""One QEMU process: what a build can do, its command line, its monitor, its consoles."""
