"""``python -m dp_adapter`` is ``dp-adapter``."""

import sys

from dp_adapter.cli import main

sys.exit(main())
