"""From a float network to one on a fixed grid: observers, quantizers, rounding, fine-tuning."""
