"""Lets torchvision's Python part be imported beside a CPU build of torch.

PyPI's torchvision brings operators that were compiled against a CUDA build, and does not import
without them. vLLM's vision-language models need its Python part alone, so the operators' *names*
are enough: they are defined when somebody first imports torchvision, and no sooner, so that a
process without images pays nothing. Set-up copies this file into the environment of a machine
without a GPU, with a ``.pth`` line that calls ``install``.
"""

import sys

_library = []


class _BeforeTorchvision:
    """Finds nothing; defines the names before the real finders are asked."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        """See ``importlib.abc.MetaPathFinder``."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            if not _library:  # a .pth line can be read twice
                _define()


def _define() -> None:
    import re
    from importlib.machinery import PathFinder
    from pathlib import Path

    found = PathFinder.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    import torch

    folder = Path(found.origin).parent
    is_cuda_build = re.search(r"\+cu\d", (folder / "version.py").read_text(encoding="utf-8"))
    if torch.version.cuda is not None or not is_cuda_build:
        return  # the two fit together
    source = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "FRAGMENT")
    _library.append(library)  # the names live as long as it does
    operator = r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"'
    for name in sorted(set(re.findall(operator, source))):
        library.define(f"{name}() -> ()")


def install() -> None:
    """Be asked before torchvision is imported."""
    sys.meta_path.insert(0, _BeforeTorchvision())
