"""Training and running a head over mapped activations."""
