"""The benchmark: what a machine, a scenario and the suite cost here, for one QEMU build or several. Run by ``ci/bench``."""
