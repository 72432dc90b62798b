"""Training: schedules, losses, metrics, steps, and the loop around them."""
