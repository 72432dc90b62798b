"""Labels from tables: one row per image."""
