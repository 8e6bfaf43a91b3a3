"""One-line breaks of QEMU's hotplug code, each built, and who of this project notices it: ``ci/mutants``, docs/mutants.md."""
