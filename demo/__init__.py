"""The two-core demonstration: its model, its data, its command."""
