"""The winner as a model folder that is proved to load and to score what the search recorded."""
