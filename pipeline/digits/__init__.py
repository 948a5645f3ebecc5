"""The embedded data set and network: handwritten digits, and a network trained on them."""
