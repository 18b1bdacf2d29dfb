"""What every test starts from: fixed examples, no time limit on a single one."""

from hypothesis import settings

# Other work on the machine must not fail a test, and a failure must come back on the next run.
settings.register_profile("odestream", deadline=None, derandomize=True)
settings.load_profile("odestream")
