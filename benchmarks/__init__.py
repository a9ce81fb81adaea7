"""rayft against the other ways to run the same search; see README.md beside this file."""
