"""Manifests: make, divide, check them, and trade them with other tools."""

VERBS = {"Verbs": ("make", "split", "check", "speeds", "index", "import", "export")}
"""See :mod:`speech_adapters.cli.verbs`."""
