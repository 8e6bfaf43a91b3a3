"""The nightly: a matrix of QEMU builds, images, modes and accelerators, run by Avocado. Run by ``ci/nightly``."""
