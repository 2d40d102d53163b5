"""rbe: a model compression toolkit.

Structure plus a residual coded near the Shannon limit, in one container per layer, with the error told plainly.
"""

__version__ = "0.2.0"
