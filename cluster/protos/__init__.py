"""Generated gRPC stubs, committed; ``make proto`` makes them anew from the ``.proto`` files."""
