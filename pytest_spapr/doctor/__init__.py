"""Looks at this host and this cache for all that the package needs: what is there, what is missing, the command that mends it.

Nothing is booted, fetched or mended. A module has the checks of one theme, small functions that return what they found; ``examine``
puts them together.
"""
