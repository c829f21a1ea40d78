"""What to ask next: prompt sources and their order."""
