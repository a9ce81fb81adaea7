"""What `rayft check` tells of a sweep before any trial runs."""
