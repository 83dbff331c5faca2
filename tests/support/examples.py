"""How many examples hypothesis tries: `make test` the same few each time, `make test-all` many, each time others."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

USUAL = 100

# An example may be slow on a loaded machine, and so may be making one.
settings.register_profile("full", max_examples=USUAL, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("full"), max_examples=20, derandomize=True)


def examples(count: int) -> settings:
    """Return settings of `count` examples in the profile `full`, and of a share of them in `fast`."""
    return settings(max_examples=count * settings.default.max_examples // USUAL)
