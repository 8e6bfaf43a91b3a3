"""Which commit of QEMU or Linux changed what a test says: ``git bisect run``, with the suite as its question.

``search.py`` drives it in a working tree of our own (``checkout.py``); git starts ``step.py`` for each commit, which builds it
(``making.py``) and asks the test (``asking.py``). What a step found goes to the search through a journal (``journal.py``).
"""
