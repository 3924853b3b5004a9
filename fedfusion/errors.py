"""What goes wrong, said for people; nothing heavy is imported for it."""


class FedfusionError(Exception):
    """An error for people: what was violated, both values, the config key and the fix."""

    exit_code = 2


class RunFailed(FedfusionError):
    """A run that was configured well and ended all the same; its last checkpoint is kept."""

    exit_code = 1
