"""What an exported model says about the rows of a file, written beside them."""
