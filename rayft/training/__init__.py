"""The training of one trial, in one process or several; knows nothing of Ray."""
