"""``python -m cluster`` is ``safeladder``: for trees that are shipped without being installed."""

from cluster.cli import main

if __name__ == "__main__":
    main()
