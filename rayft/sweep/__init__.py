"""The distributed search: the study, warm worker groups and the trials that run on them."""
