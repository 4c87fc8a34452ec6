"""Tools for people who work on Parlor; not in the wheel."""
