"""Loading pretrained models, and the map of their layers."""
