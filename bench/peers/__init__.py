"""What others would use for the same work, each at its best documented configuration, each in a process of its own."""
