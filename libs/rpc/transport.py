"""How grpc serves connections; it reads this when it is imported.

By default the event engine's pollers hand each RPC from thread to thread. Without them a server polls in one thread,
which takes about a sixth less CPU one by one (tests/benchmarks/test_transport.py, decision 0015). An operator's own
setting goes before.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
