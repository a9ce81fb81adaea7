"""Sweeps as jobs of a Ray cluster, from a machine that isn't part of it."""
