"""fdda-deploy: from a trained vision network and few or no real images to a low-bit engine."""

__version__ = "0.1.0"
