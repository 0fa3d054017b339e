"""How hard the hostile tests try: a few hundred inputs by default, more where DP_HOSTILE_TRIES asks for it."""

import os

from hypothesis import HealthCheck, settings

# one kind of input gets this many tries
TRIES = int(os.environ.get("DP_HOSTILE_TRIES", "40"))

# the same tries in each run; a longer number goes on from them. A hang is what these tests look for, so each test
# bounds time by what it does, not by the clock.
hostile = settings(
    max_examples=TRIES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
