"""``python -m dp_adapter``, or ``python path/to/dp_adapter`` where it is not installed, is ``dp-adapter``."""

import sys
from pathlib import Path

if not __package__:  # run by its path: what lies in this folder is no module of its own
    sys.path[0] = str(Path(__file__).parents[1])

from dp_adapter.cli import main

sys.exit(main())
