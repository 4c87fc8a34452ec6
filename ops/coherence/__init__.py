"""`parlor coherence`: reads of the whole system, checked against what was acknowledged before each began.

`system` starts it, `writers` and `readers` are the processes that call it, `board` is the memory that they share,
`faults` is what happens to it meanwhile, and `run` puts them together.
"""
