"""The stats service: owns no table and may only read.

It promises that a count is one statement, that bookings and salons in it are never older than the last acknowledged
write, and that every reply says when it was counted.
"""
