"""The cost of RPCs, relative to a bare grpcio echo of the same message in the same run."""
