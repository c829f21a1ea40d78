"""From which of its checkpoints a run goes on.

A driver that was thought dead may be alive, commit another checkpoint and retire the one that was
chosen. So the choice is looked at again while the ledger is locked and the checkpoints are fenced
(``ResumePoint.settle``): what counts is what was there when the older driver could write no more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cluster.ledger import taken_back
from cluster.probe_log import ProbeLog
from cluster.run_directory import RunDirectory
from learners.checkpoints import CheckpointManifest, committed, inventory, newest_valid, take_over
from safeladder.config import Config
from safeladder.errors import NotResumableError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """Where a driver goes on."""

    checkpoint: Path | None
    """None begins from the start."""
    initial: Path
    """The policy as RL found it, which is the reference."""
    skipped: tuple[str, ...] = ()
    """Of each newer checkpoint why it is not taken."""
    seen: frozenset[tuple[str, int]] = frozenset()
    """The checkpoints that there were."""

    @property
    def step(self) -> int:
        """Of the checkpoint; 0 from the start."""
        return int(self.checkpoint.name.removeprefix("step-")) if self.checkpoint else 0

    @classmethod
    def of_a_new_run(cls, config: Config) -> ResumePoint:
        """The start, from the base model."""
        return cls(checkpoint=None, initial=config.model.path)

    @classmethod
    def find(cls, config: Config, directory: RunDirectory) -> ResumePoint:
        """The newest checkpoint that verifies. Raises ``NotResumableError``."""
        require_not_failed(directory)
        seen = inventory(directory.checkpoints)
        checkpoint, skipped = newest_checkpoint(directory)
        initial = config.model.path if checkpoint is None else initial_policy(config, directory)
        return cls(checkpoint=checkpoint, initial=initial, skipped=tuple(skipped), seen=seen)

    def settle(self, config: Config, directory: RunDirectory, fence: int) -> ResumePoint:
        """This point, or another if an older driver has written checkpoints since it was found;
        with ``fence``, from now on none can. Raises ``NotResumableError``."""
        take_over(directory.checkpoints, fence)
        if inventory(directory.checkpoints) == self.seen:
            return self
        log.warning("another driver of the run has written checkpoints meanwhile: it is ended")
        return ResumePoint.find(config, directory)


def newest_checkpoint(directory: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that is skipped.

    None if the run ended before it had finished its first one: it then begins anew, in its own
    ledger. Raises ``NotResumableError`` if there were some and none is left.
    """
    skipped: list[tuple[Path, str]] = []
    probes = ProbeLog(directory.probes)
    behind: list[str] = []

    def veto(found: CheckpointManifest) -> str | None:
        if (why := probes.forbids(found.fence, found.step)) is not None:
            behind.append(why)
            return why
        return taken_back(directory.ledger, found.fence, found.step)

    for root in (directory.checkpoints, directory.initial):
        path, _, unusable = newest_valid(root, veto=veto)
        skipped += unusable
        if path is not None:
            sentences = [f"checkpoint {place.name} is skipped: {why}" for place, why in skipped]
            for sentence in sentences:
                log.warning(sentence)
            return path, sentences
    if not any(committed(root) for root in (directory.checkpoints, directory.initial)):
        log.warning("no checkpoint was finished: the run begins anew")
        return None, [why for _, why in skipped]
    if skipped and len(behind) == len(skipped):
        log.warning("no checkpoint is from before the fall: the run begins anew")
        return None, behind
    reasons = "; ".join(f"{path.name}: {why}" for path, why in skipped) or "all are gone"
    raise NotResumableError(f"{directory.path} has no checkpoint to continue from ({reasons})")


def require_not_failed(directory: RunDirectory) -> None:
    """Raise ``NotResumableError`` if a tripwire has ended the run for good."""
    for _, ruling in ProbeLog(directory.probes).rulings:
        if ruling.kind == "fail":
            raise NotResumableError(f"{directory.path} was ended for good: {ruling.text}")


def initial_policy(config: Config, directory: RunDirectory) -> Path:
    """The policy as RL found it, which is the reference: the base model, or what the supervised
    rung made of it. Raises ``NotResumableError`` if the latter is needed and does not verify."""
    if config.stage != "rl" or config.sft is None or not config.reference.enabled:
        return config.model.path
    path, _, unusable = newest_valid(directory.initial)
    if path is None:
        reasons = "; ".join(why for _, why in unusable) or "nothing is there"
        raise NotResumableError(
            f"{directory.initial}: the reference policy that the supervised rung left does not "
            f"verify ({reasons}), and training on with another one would change the objective"
        )
    return path
