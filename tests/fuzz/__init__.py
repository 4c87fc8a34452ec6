"""Random requests to every RPC: `make fuzz N=1000000`, and a bounded run in the suite."""
