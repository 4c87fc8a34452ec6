"""`parlor report`: the seed's report, measured anew on a system of its own.

Each read of the seed's tables is done as the predecessor did it ("before") and as the services do it ("after"), in
turn; docs/decisions/0019 says what exactly is compared.
"""
