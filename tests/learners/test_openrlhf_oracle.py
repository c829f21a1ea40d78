"""Our PPO loss, its off-policy corrections and KL estimators equal OpenRLHF's. Its package imports
flash-attn, which a CPU lacks: a child process gets empty stand-ins for the names that it imports
and never calls."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.engine

ORACLE = """
import sys, types
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

for name in ("flash_attn", "flash_attn.bert_padding", "flash_attn.utils",
             "flash_attn.utils.distributed", "flash_attn.layers", "flash_attn.layers.rotary",
             "flash_attn.ops", "flash_attn.ops.triton", "flash_attn.ops.triton.cross_entropy"):
    module = MagicMock()
    module.__spec__, module.__path__, module.__version__ = ModuleSpec(name, None), [], "2.8.3"
    sys.modules[name] = module

import numpy as np
import torch
from openrlhf.models.loss import PolicyLoss
from openrlhf.models.utils import compute_approx_kl

from learners.aggregation import token_weights
from learners.divergences import kl_estimate
from learners.objectives import ppo_clip_loss
from learners.off_policy import (
    geometric_log_ratio, importance_weights, off_policy_log_ratio,
)

torch.manual_seed(0)
behavior = -torch.rand(6, 9) * 4
policy = (behavior + 0.4 * torch.randn(6, 9)).requires_grad_()
advantages = torch.randn(6, 1).expand(6, 9)
mask = (torch.arange(9)[None] < torch.tensor([1, 9, 4, 7, 2, 9])[:, None]).float()

for token_level, aggregation in ((True, "token-mean"), (False, "seq-mean-token-mean")):
    theirs = PolicyLoss(token_level_loss=token_level)(
        policy, behavior, advantages, action_mask=mask, batch_num_tokens=mask.sum(),
        global_batch_size=6)[0]
    weights = token_weights(list(mask.numpy()), range(6), aggregation)
    flat = [t.reshape(-1) for t in (policy, behavior, advantages)]
    ours = (ppo_clip_loss(*flat, 0.2) * torch.tensor(np.concatenate(weights))).sum()
    assert abs(ours.item() - theirs.item()) < 1e-6, (aggregation, ours, theirs)
    gradients = [torch.autograd.grad(l, policy, retain_graph=True)[0] for l in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-6), aggregation

# Decoupled: trust region around the proximal policy, weights proximal / behavior.
kept = mask.bool()
lengths = mask.sum(-1).long()
segments = torch.repeat_interleave(torch.arange(6), lengths)
proximal = behavior + 0.9 * torch.randn(6, 9)
around = (proximal + 0.3 * torch.randn(6, 9)).requires_grad_()
log_ratio = off_policy_log_ratio(proximal[kept], behavior[kept], torch.ones(len(segments)).bool())
cases = {
    ("token", "clip"): ("clip", "token", 0.6, 2.0),
    ("token", "mask"): ("mask", "token", 0.6, 2.0),
    ("seq", "mask"): ("mask", "geometric", 0.8, 1.4),
}
for (their_level, mode), (correction, level, low, high) in cases.items():
    theirs = PolicyLoss(is_correction_level=their_level, is_correction_mode=mode,
                        is_correction_threshold=(low, high))(
        around, proximal, advantages, action_mask=mask, rollout_log_probs=behavior,
        batch_num_tokens=mask.sum())
    weights = importance_weights(log_ratio, segments, correction=correction, level=level,
                                 low=low, high=high)
    losses = ppo_clip_loss(around[kept], proximal[kept], advantages[kept], 0.2)
    ours = (weights.weights * losses).sum() / mask.sum()
    assert abs(ours.item() - theirs[0].item()) < 1e-6, (mode, ours, theirs)
    gradients = [torch.autograd.grad(l, around, retain_graph=True)[0] for l in (ours, theirs[0])]
    assert torch.allclose(*gradients, atol=1e-6), mode
    touched = weights.is_masked | weights.is_clipped
    if their_level == "token":
        share = touched.float().mean()
    else:
        share = torch.tensor([touched[segments == s].float().mean() for s in range(6)]).mean()
    assert abs(share - theirs[4]) < 1e-6 and 0 < share < 1, (mode, share, theirs[4])

# GSPO's ratio is the geometric mean; its loss in values, before the trust region of GSPO.
everything = off_policy_log_ratio(policy[kept], behavior[kept], torch.ones(len(segments)).bool())
ratio = geometric_log_ratio(everything, segments).exp()
bounded, gain = ratio.clamp(0.8, 1.2), advantages[kept]
gspo = -torch.minimum(ratio * gain, bounded * gain)
ours = torch.stack([gspo[segments == s].mean() for s in range(6)]).mean()
theirs = PolicyLoss(policy_loss_type="gspo")(policy, behavior, advantages, action_mask=mask)[0]
assert abs(ours - theirs) < 1e-6, (ours, theirs)

row_policy, row_behavior = policy[1].detach(), behavior[1]
for estimator in ("k1", "k2", "k3"):
    theirs = compute_approx_kl(row_policy, row_behavior, kl_estimator=estimator)
    assert torch.allclose(kl_estimate(row_policy, row_behavior, estimator), theirs, atol=1e-5)
"""


def test_ppo_loss_corrections_and_kl_estimators_equal_openrlhfs() -> None:
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ORACLE],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
