"""libs/cache in a service other than Parlor's: the tests bring the table, the values and the pool."""
