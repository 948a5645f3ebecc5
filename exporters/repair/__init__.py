"""Repairs of anybody's Q/DQ graph, one per file; `exporters.repair.repairing` is their face."""
