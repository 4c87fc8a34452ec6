"""The gRPC server on libnghttp2, beside grpcio's."""
