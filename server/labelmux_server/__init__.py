"""Requests in, predictions out: the HTTP server over one encoder and a bank of adapters."""
