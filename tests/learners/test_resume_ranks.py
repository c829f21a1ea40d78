"""Whether two ranks resume bit for bit: measured and told, for each ZeRO stage. The bar is a
tolerance; that one rank does so exactly is held by ``test_learner``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.learners.ranks import Job, make_config, make_tiny_model, run_jobs
from tests.learners.test_learner import save_and_go_on, steps_three_and_four

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_resume_within_1e_5_and_tell_whether_the_bits_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: int
) -> None:
    model = tmp_path / "model"
    make_tiny_model(model)
    config = make_config(model, tmp_path, ranks=2, zero_stage=stage, epochs=2)
    first = Job(config, save_and_go_on, {"parent": tmp_path / "checkpoints"})
    [whole] = run_jobs(2, [first])
    resumed, again = run_jobs(
        2,
        [
            Job(config, steps_three_and_four, resume_from=whole["path"]),
            Job(config, steps_three_and_four, resume_from=whole["path"]),
        ],
    )
    assert np.allclose(resumed["losses"], whole["losses"], atol=1e-5)
    with capsys.disabled():
        same, repeated = (
            f"losses {'equal' if a['losses'] == b['losses'] else 'differ'}, "
            f"weights {'equal' if a['digest'] == b['digest'] else 'differ'}"
            for a, b in ((resumed, whole), (again, resumed))
        )
        print(f"\nZeRO {stage}, 2 ranks: resumed against whole: {same}; twice resumed: {repeated}")  # noqa: T201
