"""Banks: versioned adapters, heads and fusions in a folder, with tags, a search, and what each is worth."""
