"""What a trained model says of recordings: of any length, from disk or memory, many at once."""
