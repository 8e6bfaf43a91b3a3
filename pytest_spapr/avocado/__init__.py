"""The nightly's side of Avocado: what a cell of its matrix is, how Avocado runs the suite in it, what a night came to.

Avocado is the engine (variants, tasks, dependencies, spawners, timeouts, results); pytest is the language that tests are written in.
Only ``runner.py``, ``plugins.py`` and ``spawner.py`` import Avocado, and nothing else of the package imports these: Avocado finds them
by entry points.
"""

from typing import Final

#: What the spawner of ``spawner.py`` is called in Avocado's settings.
OUR_SPAWNER: Final = "spapr-process"
