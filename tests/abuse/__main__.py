"""Every attack that is known, against this tree: ``python -m tests.abuse``, or ``make abuse``.

Prints one line for each class of attack and a total; the exit status is 1 if anything was not
refused or contained. ``python -m tests.abuse sandbox judges`` runs some of the corpora.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from tests.abuse import auth, judges, sandbox, wire
from tests.abuse.outcome import Outcome

CORPORA: Mapping[str, Callable[[], list[Outcome]]] = {
    "wire": wire.run,
    "auth": auth.run,
    "judges": judges.run,
    "sandbox": sandbox.run,
}


def main(names: Sequence[str], corpora: Mapping[str, Callable[[], list[Outcome]]] = CORPORA) -> int:
    """Run the named corpora (none named: all) and print what came of them."""
    if unknown := sorted(set(names) - set(corpora)):
        sys.stderr.write(f"no corpus {unknown[0]!r}; there are {', '.join(corpora)}\n")
        return 2
    outcomes = []
    for name in names or corpora:
        found = corpora[name]()
        outcomes += found
        for one in found:
            mark = "" if one.is_contained else f"NOT CONTAINED {one.told}"
            line = f"{name:8} {one.kind:50} {one.tried:5} tried {one.held:5} held  {mark}"
            sys.stdout.write(f"{line.rstrip()}\n")
    tried, held = sum(one.tried for one in outcomes), sum(one.held for one in outcomes)
    sys.stdout.write(f"total: {tried} tried, {held} refused or contained, {tried - held} not\n")
    return int(held != tried)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
