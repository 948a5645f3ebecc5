"""Images from a trained network: statistics, generators, losses, recipes, one training loop."""
