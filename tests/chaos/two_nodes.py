"""A Ray cluster of one head and two further raylets on this machine, for as long as standard input
is open: ``python -m tests.chaos.two_nodes``. Its address is the first line that it prints."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

PLACE = {"safeladder-place": "far"}
MIB = 2**20


def main() -> None:
    """Start, say where, wait, end."""
    common = {"include_dashboard": False, "object_store_memory": 200 * MIB}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, **common})
    for _ in range(2):
        cluster.add_node(num_cpus=1, labels=PLACE, object_store_memory=200 * MIB)
    cluster.wait_for_nodes()
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
