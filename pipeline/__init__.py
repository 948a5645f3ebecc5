"""What happens to a model, in order: load, synthesize, quantize, export, build, report."""
