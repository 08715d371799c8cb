"""Errors that are the user's to mend. Imports nothing."""


class InputError(ValueError):
    """What the user wrote or gave cannot be used; the message says the value, the rule and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


class StorageError(OSError):
    """Storage refuses to be written, and went on refusing while it was tried again; the message says what and why.

    Not the user's input: the work has failed, and can be gone on with once storage takes it.
    """


class DataError(InputError):
    """The data the user named cannot be used as asked; the message names the setting, the fault and a remedy."""


class ModelError(InputError):
    """The model the user named cannot be used as asked."""
