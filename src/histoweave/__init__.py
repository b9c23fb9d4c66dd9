"""Weave histology and expression: from a tissue section and a few labelled spots to a region map."""

import lazy_loader

from histoweave._version import __version__

# Rooms load on first use, so that `import histoweave` stays cheap and never imports torch.
__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]
