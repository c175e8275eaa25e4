"""An independent second reading of the domain: the case fold and every metric in plain Python.

Nothing here is shared with the pipeline but the words of the domain. The property tests compare the two.
"""
