"""The documentation's site: what of it comes out of the code, and how Sphinx is called."""
