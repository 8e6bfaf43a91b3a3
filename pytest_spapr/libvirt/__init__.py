"""A real libvirt around one of our QEMU builds and guest images: packages, a daemon of our own, a domain in it."""
