"""Durable writes, locks, determinism, logging, progress and errors, for every room."""
