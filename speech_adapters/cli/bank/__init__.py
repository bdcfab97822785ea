"""A bank: versioned adapters, heads and fusions in a folder, found by what they are and what they are worth.

--bank DIR, or SPEECH_ADAPTERS_BANK in the environment, names it. With the latter every verb takes
bank:client-a/asr@production where it takes an adapter's folder.
"""

VERBS = {
    "Fill": ("init", "add", "import"),
    "Look": ("list", "search", "get"),
    "Manage": ("tag", "promote", "rm"),
    "Keep well": ("verify", "gc", "compress", "export"),
}
"""See :mod:`speech_adapters.cli.verbs`."""
