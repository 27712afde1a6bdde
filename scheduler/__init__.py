"""Decides which model lives where: estimates, lays out, loads, evicts, and owns the runner processes."""
