"""From the user's files to batches of token ids: read, check, split, encode once, batch."""
