"""Stubs of the thumbwheel gRPC API."""
