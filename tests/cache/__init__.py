"""libs/cache, used by a service that is not Parlor's: its table, its values and its pool are the tests' own."""
