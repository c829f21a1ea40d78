"""Our losses, advantages, corrections and KL estimators equal OpenRLHF's. Its package imports
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

from types import SimpleNamespace

import numpy as np
import torch
from openrlhf.models.loss import PolicyLoss, ValueLoss
from openrlhf.models.utils import compute_approx_kl
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.trainer.ppo_utils.length_penalty import apply_overlong_penalty

from learners.aggregation import token_weights
from learners.divergences import kl_estimate
from learners.length_conditioned import overlong_penalties
from learners.objectives import gspo_loss, ppo_clip_loss
from learners.off_policy import (
    importance_weights, off_policy_log_ratio,
)
from learners.returns import cost_to_go, generalized_advantages
from learners.value_loss import value_loss

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

def same(ours, theirs, leaf, name):
    assert abs(ours.item() - theirs.item()) < 1e-5, (name, ours, theirs)
    slopes = [torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in (ours, theirs)]
    assert slopes[0].any() and torch.allclose(*slopes, atol=1e-6), name

weights = torch.tensor(np.concatenate(token_weights(list(mask.numpy()), range(6),
                                                    "seq-mean-token-mean")))[kept.reshape(-1)]
for low, high in ((0.2, 0.2), (0.05, 0.1)):
    theirs = PolicyLoss(low, high, policy_loss_type="gspo")(policy, behavior, advantages,
                                                           action_mask=mask)[0]
    ours = gspo_loss(policy[kept], behavior[kept], advantages[kept], segments, low, high)
    same((ours * weights).sum(), theirs, policy, "gspo")

# Clip-higher and dual clip, with ratios far outside.
wild = (behavior + 1.5 * torch.randn(6, 9)).requires_grad_()
theirs = PolicyLoss(0.2, 0.28, dual_clip=3.0)(wild, behavior, advantages, action_mask=mask)[0]
ours = ppo_clip_loss(wild[kept], behavior[kept], advantages[kept], 0.2, 0.28, 3.0)
same(ours.mean(), theirs, wild, "dual clip")

# PPO: GAE, REINFORCE's return, and the value loss.
before, rewards = torch.randn(6, 9), torch.randn(6, 9)
theirs, targets = RemoteExperienceMaker.get_advantages_and_returns(
    None, before, rewards, mask, 0.9, 0.8)
summed = RemoteExperienceMaker.get_cumulative_returns(None, rewards, mask, 1.0)
for row, length in enumerate(lengths.tolist()):
    ours = generalized_advantages(rewards[row, :length], before[row, :length], gamma=0.9,
                                  gae_lambda=0.8)
    for one, other in zip((*ours, cost_to_go(rewards[row, :length])), (theirs, targets, summed)):
        assert np.allclose(one, other[row, :length], atol=1e-5), row
for clip in (None, 0.3):
    values = (before + torch.randn(6, 9)).requires_grad_()
    theirs = ValueLoss(clip)(values, before, targets, action_mask=mask)
    ours = value_loss(values[kept], before[kept], targets[kept], clip)
    same(ours.mean(), theirs, values, "value")

# DAPO's penalty for answers near the limit.
sizes = [10, 80, 85, 99, 100]
graded = SimpleNamespace(response_length=torch.tensor(sizes), rewards=torch.zeros(5))
apply_overlong_penalty([graded], 100, 20, 0.5)
ours = overlong_penalties(sizes, limit=100, buffer=20, factor=0.5)
assert np.allclose(ours, graded.rewards) and ours.any()

row_policy, row_behavior = policy[1].detach(), behavior[1]
for estimator in ("k1", "k2", "k3"):
    theirs = compute_approx_kl(row_policy, row_behavior, kl_estimator=estimator)
    assert torch.allclose(kl_estimate(row_policy, row_behavior, estimator), theirs, atol=1e-5)
"""


def test_losses_advantages_corrections_and_kl_estimators_equal_openrlhfs() -> None:
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ORACLE],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
