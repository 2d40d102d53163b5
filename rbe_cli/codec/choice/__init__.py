"""The choice of structure: what a tensor may be coded through, and what that would gain.

wish         what is asked for, and what a pipeline costs at that
promising    which pipelines are worth a look
survey       the look: at all of a matrix, or for a forecast at a sample of its rows
sample       some rows, coded, where tables cannot tell
"""
