"""The one kind of error that is the user's to mend. Imports nothing."""


class InputError(ValueError):
    """What the user wrote or gave cannot be used; the message says the value, the rule and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """
