"""The booking service: salons, their resources, services and time off, bookings and their history, the feed of changes.

It guarantees that two PENDING or CONFIRMED bookings of one resource, with their buffers, never overlap, that an expired
hold blocks nothing, that a booking's status changes only along its transitions, that SearchAvailability offers what
CreateBooking accepts, and that a read shows every write acknowledged before it (docs/guarantees.md).

service.py, write_rpcs.py and salon_rpcs.py have the RPCs. The SQL is in the *_queries modules. The rules are plain
functions in rules, placement, transitions, opening_hours, availability and reasons.
"""
