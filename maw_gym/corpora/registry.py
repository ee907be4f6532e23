"""ir_datasets, with pydocs among its datasets, where it can be imported at all."""

from typing import Any

from maw_gym.errors import InputError


def registry() -> Any:
    """The module ir_datasets, in which pydocs is registered.

    Importing it makes a folder in the user's home: a machine without a home that can be written to
    can still use collections in folders.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        import ir_datasets

        from maw_gym.corpora.pydocs_dataset import register
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"ir_datasets cannot make its folder ({error}); set IR_DATASETS_HOME to one that can be"
            " written"
        ) from None
    register()
    return ir_datasets
