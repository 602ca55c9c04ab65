"""``python -m space``: the same entry that a Space runs."""

from __future__ import annotations

import sys

from space.space_app import main

if __name__ == "__main__":
    sys.exit(main())
