"""Text in, verdict out: verifiers by principle, and how verdicts become one reward."""
