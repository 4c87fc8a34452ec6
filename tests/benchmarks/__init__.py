"""What an RPC costs, beside a bare grpcio echo of the same message in the same run."""
