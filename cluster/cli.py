"""The command ``safeladder``: arguments in, one sentence and an exit code out.

Each module of verbs adds its own to the app; what a verb does stands in the modules it calls.
"""

from __future__ import annotations

# ``--help`` lists the verbs in this order:
# isort: off
from cluster import training_verbs as training_verbs
from cluster import live_verbs as live_verbs
from cluster import audit_verbs as audit_verbs
from cluster import verifier_verbs as verifier_verbs
from cluster import compose_verbs as compose_verbs
from cluster import evaluation_verbs as evaluation_verbs
from cluster import probe_verbs as probe_verbs

# isort: on
from cluster.command_line import app


def main() -> None:
    """Entry point of ``safeladder`` and ``python -m cluster``."""
    app(prog_name="safeladder")
