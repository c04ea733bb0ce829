"""What programs that vmpack starts inherit: all variables but the secrets that vmpack was given."""

from __future__ import annotations

import os

STORE_TOKEN = "VMPACK_STORE_TOKEN"
KEY_PASSPHRASE = "VMPACK_KEY_PASSPHRASE"
_SECRETS = frozenset((STORE_TOKEN, KEY_PASSPHRASE))
"""A key that `--key env:NAME` names is one more: whoever has read it takes it out of ours."""


def inherited(*, token: bool = False) -> dict[str, str]:
    """Return the variables of a program that is started.

    token: with that of neighbours, for a process of vmpack's own that asks them.
    """
    kept_back = _SECRETS - {STORE_TOKEN} if token else _SECRETS
    return {name: text for name, text in os.environ.items() if name not in kept_back}
