"""The booking service: salons, their resources, bookings and the history of bookings.

It guarantees that two PENDING or CONFIRMED bookings of one resource never overlap, that an expired hold blocks nothing,
that a booking's status changes only along its transitions, that SearchAvailability offers only what CreateBooking would
accept, and that a read shows every write acknowledged before it (docs/guarantees.md).

service.py has every RPC. The SQL is in salon_queries, resource_queries, booking_queries and booking_write_queries. The
rules are plain functions in transitions, opening_hours and availability.
"""
