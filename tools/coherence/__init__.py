"""Checks a running system: random reads and writes while faults are injected, every read compared with every write.

`make coherence SECONDS=300 MODE=bounded`. docs/decisions/0018 says how it works.
"""
