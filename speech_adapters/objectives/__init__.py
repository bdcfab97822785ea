"""Training objectives that need no labels."""
