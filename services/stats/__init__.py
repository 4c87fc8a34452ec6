"""The stats service: figures of a salon. It owns no table and only reads.

Each reply is counted by one statement and says when. Its bookings and salons are never older than the last acknowledged
write.
"""
