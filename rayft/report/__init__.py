"""What people see of a sweep: tables, live progress, TensorBoard."""
