"""Data: audio, manifests, trials, score files, augmentation, batches."""
