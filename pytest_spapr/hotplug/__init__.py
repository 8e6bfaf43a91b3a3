"""Hot-plug and hot-unplug: devices, attempts and their outcomes, contracts and known defects."""
