"""Training objectives that need no labels: distillation, and the masked prediction of the three families."""
