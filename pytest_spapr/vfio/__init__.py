"""A server of the vfio-user protocol for one PCI function: the host's side of a passed-through device, in the hands of a test.

It runs in a thread of the test's process. Nothing here knows of a machine but its timeline.
"""
