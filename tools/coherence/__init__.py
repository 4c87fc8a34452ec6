"""`make coherence`: load on a whole system while faults happen, with each read checked (decision 0018).

`system` is what is tested, `writer` and `reader` are the load, `state` is the memory that their processes share,
`faults` is what happens meanwhile, and `run` puts them together.
"""
