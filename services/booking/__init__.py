"""The booking service: owns salons, their resources, bookings and what happened to these.

It promises that two PENDING or CONFIRMED bookings of one resource never overlap, that a hold that has expired is in
nobody's way, that a booking only moves along its transitions, that it offers what it would accept, and that a read
shows every write that was acknowledged before it.

salons.py, resources.py, bookings.py and changes.py hold the RPCs, each beside its `*_queries.py`; hours.py knows the
clock on the wall, availability.py what is free.
"""
