"""rayft finds the best way to fine-tune a pretrained model on your data."""

__version__ = "0.1.0"
