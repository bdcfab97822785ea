"""Tasks: what is learnt and how it is scored; experiments over methods, seeds and folds."""
