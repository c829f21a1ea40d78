"""What was achieved: held-out evaluation, intervals, the independent detector."""
