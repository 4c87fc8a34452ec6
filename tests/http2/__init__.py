"""The gRPC server on libnghttp2, compared with grpcio's."""
