"""Text in, verdict out: verifiers by principle, and how verdicts become one reward.

A principle of the configuration names its verifier by import path and passes ``options``:

==========================================  ======================================================
``verifier:``                               score 1 for
==========================================  ======================================================
``rewards.format:ThinkFormat``              one think block with reasoning, then an answer
``rewards.format:StopWithinLimit``          an answer that ends by itself, within a token limit
``rewards.language:LanguageConsistency``    question, chain and answer in one language
``rewards.safety:SafetyRules``              a safe answer with a reason or help (six labels, rules)
``rewards.helpfulness:Normal``              help on a harmless question, no refusal, no warning
``rewards.exact:ExactAnswer``               the reference as text, phrase or number
``rewards.exact:MathAnswer``                the reference symbolically (math-verify, child process)
``rewards.instructions:InstructionRules``   the share of a row's constraints that are met
``rewards.visual_focus:VisualFocus``        reasoning that says what the image shows (rule)
``rewards.judge:Judge``                     a language model's label; templates in ``judges/``
``rewards.text_classifier:TextClassifier``  a fitted linear classifier's label
``rewards.environment:EnvironmentScore``    what the environment of the conversation says it is
``rewards.search:SearchFormat``             a search conversation in the form that is asked for
``rewards.search:SearchAccuracy``           a right final answer of a search conversation
``rewards.search:SearchReliability``        confidence above the bound if right, not above if wrong
==========================================  ======================================================

Labels, scores and configuration of each stand in ``docs/verifiers.md``.

``adapters`` runs reward functions that were written for other projects.
``building`` makes them, ``deadline`` asks them, ``combine`` turns verdicts into a reward.
A verifier of your own is any class with the methods of ``safeladder.ports.Verifier`` whose
constructor takes ``principle`` and its options; ``judging.RuleVerifier`` makes that one method.
"""
