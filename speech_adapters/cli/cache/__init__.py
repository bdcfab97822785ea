"""Activations of frozen layers that training keeps (training.cache=FOLDER)."""

VERBS = {"Verbs": ("list", "clear")}
"""See :mod:`speech_adapters.cli.verbs`."""
