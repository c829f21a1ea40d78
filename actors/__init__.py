"""Long-lived roles that generate or score, and their engines. They know no Ray."""
