"""Training from scratch: recipes, the loop, checkpoints, evaluation."""
