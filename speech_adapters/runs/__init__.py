"""Runs: the folder a run leaves behind, and what it ran on."""
