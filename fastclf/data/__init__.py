"""Pictures and their labels, from folders, tables or arrays to batches."""
