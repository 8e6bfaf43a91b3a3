"""Exploration: histories that nobody wrote, played on a machine next to a model that says what must hold.

A history (``history``) is a list of steps (``steps``), each plain data. The model (``model``) says what each must bring, a world plays
it: a QEMU without a guest (``firmware``), or a fake in tests. hypothesis makes histories (``rules``), rounds of them are searched
(``search``), and what broke is made small (``shrink``) and written down (``script``). What is known already is counted (``known``).
"""
