"""The vocabulary of the project: records, ports, configuration, errors.

Nothing heavy is imported here: no torch, Ray, vLLM, DeepSpeed, gRPC or W&B.
"""

__version__ = "0.1.0"
