"""anchorline: contrastive pairs, anchored objectives, and proof of what changed."""

__version__ = "0.1.0"
