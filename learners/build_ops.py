"""Set-up step: compile what DeepSpeed needs on a CPU. ``python -m learners.build_ops``."""

from __future__ import annotations

import logging

from learners.deepspeed_engine import build_cpu_op, extensions_dir


def main() -> None:
    """Build, or find built; says where."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger = logging.getLogger(__name__)
    logger.info(
        "building DeepSpeed's CPU operator in %s (once, up to two minutes)", extensions_dir()
    )
    build_cpu_op()
    logger.info("DeepSpeed's CPU operator is ready")


if __name__ == "__main__":
    main()
