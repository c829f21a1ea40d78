"""Constraints of an instruction that a program can check: IFEval's 25 types, and six soft ones.

``text`` and ``language`` measure a text, ``counts`` and ``layout`` hold the types with their
parameters and rules, ``vocabulary`` knows all of them and which exclude each other, ``templates``
words them, ``rows`` reads them from a row of data, ``reward`` makes one number of their outcomes.
``rewards.instructions`` is the verifier.

Every type has two readings (Zhou et al. 2023, arXiv 2311.07911, for the first):

``reference``
    IFEval's rules as published, for evaluation: keywords are regular expressions, a text in no
    detectable language passes as any.
``hardened``
    For reward: keywords are plain text, a text in no detectable language fails.

In both a blank text fails everything, and the language detector is seeded.
"""
