"""Sweeps: a search over settings, pruned on dev data, shared by several processes, gone on with after a kill."""
