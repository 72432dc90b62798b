"""The body without gradients, through the fastest runtime that computes the same."""
