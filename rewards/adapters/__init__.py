"""Reward functions written for other projects, run unedited: their score becomes a verdict.

============================================  ====================================================
``verifier:``                                 ``options.function``, or a ``url``
============================================  ====================================================
``rewards.adapters.trl:TrlReward``            ``f(prompts, completions, ..., **columns)``
``rewards.adapters.verl:VerlReward``          ``compute_score(data_source, solution_str, ...)``
``rewards.adapters.openrlhf:OpenRlhfReward``  ``reward_func(queries, prompts, labels)``
``rewards.adapters.openrlhf:OpenRlhfRemote``  POST ``{"query", "prompts", "labels"}``
``rewards.adapters.slime:SlimeReward``        ``async f(args, sample)``; miles too
``rewards.adapters.slime:SlimeGroupReward``   ``async f(args, samples)``
``rewards.adapters.slime:SlimeRemote``        POST ``{"prompt", "response", "label"}``
``rewards.adapters.areal:ArealReward``        ``f(prompt, completions, prompt_ids, ..., **row)``
``rewards.adapters.verifiers_v1:V1Reward``    ``async f(task, trace)``, filled by name
``rewards.adapters.nemo_gym:NemoGymRemote``   POST ``/seed_session``, then ``/verify``
============================================  ====================================================

A function runs in a child process (``worker``) behind ``sandbox``; a failure is INVALID, never a
number. ``openrlhf_server`` goes the other way: it serves our verifiers to OpenRLHF.
"""
