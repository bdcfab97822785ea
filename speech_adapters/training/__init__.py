"""Training: batches by length, parameter groups, the trainer, run folders."""
