"""``python -m histoweave``: the command line where the interpreter is known and the script is not on the path."""

from __future__ import annotations

import sys

from histoweave.cli import main

sys.exit(main())
