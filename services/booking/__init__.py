"""The booking service: owns salons and bookings.

It promises that two PENDING or CONFIRMED bookings of one resource never overlap, that a booking only moves along its
transitions, and that a read shows every write that was acknowledged before it.
"""
