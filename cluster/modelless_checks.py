"""``check --without-model``: everything about a config that does not need its model's files, its
machines or its judges. What that leaves out is said."""

from __future__ import annotations

from pathlib import Path

from cluster.canaries import canaries_of
from cluster.checks import check_evaluation, check_routes, check_verifier
from cluster.data_checks import check_data
from cluster.environment_checks import check_environment
from cluster.model_checks import check_chat_template
from cluster.model_folder import ModelFolder
from curricula.demonstrations import load_demonstrations
from learners.preconditions import require_trainable
from safeladder.config import Config

NOT_CHECKED = (
    "Not checked without the model: its files, architecture, layers, context and own chat "
    "template; the lengths of rows in tokens; this machine and the cluster (GPUs, memory, disk, "
    "ports); services and judges behind an address."
)


def check_without_model(config: Config) -> None:
    """Raise ``ConfigError`` or ``DataError``, as ``preflight`` would."""
    check_routes(config)
    check_evaluation(config)
    check_chat_template(config.model.chat_template)
    require_trainable(config)
    if config.stage == "rl":
        check_data(config)
        check_environment(config)
    elif config.stage == "sft" and config.sft is not None:
        load_demonstrations(config.sft.data)
    canaries_of(config)
    for principle, settings in config.principles.items():
        check_verifier(principle, settings)


def stand_in(path: Path, billions: float) -> ModelFolder:
    """A model of which only the number of parameters is known."""
    return ModelFolder(path, round(billions * 1e9), ())
