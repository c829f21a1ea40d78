"""Environments that answer the model's turns, and the driver that lets an engine talk to them."""
