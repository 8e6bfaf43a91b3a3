"""The battery: what can come of an unplug, provoked scenario by scenario without pytest, and what was observed as values.

A scenario (``scenarios``) is a function on a started machine; its observations (``observation``) are facts that can be held against a
contract, against those of another build (``compare``), and written down.
"""
