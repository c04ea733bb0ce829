"""Detach a VM in a process of its own, beside whoever shows its console."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

from packer.environment import inherited
from packer.run.vm.vm import Vm, the_vm
from packer.survey.child import bare_environment, import_path, interpreter_running

_BOOT = (
    "import sys, importlib\n"
    "sys.path[:] = sys.argv[2:]\n"
    "importlib.import_module('packer.run.manage.detach_process').main(sys.argv[1])"
)


class DetachProcess:
    """Detaches a VM until `end`; what it has done then is taken up by `detach`.

    What goes wrong it does not say: `detach` meets the same.
    """

    def __init__(self, vm: Vm) -> None:
        self._process = subprocess.Popen(
            interpreter_running(_BOOT, str(vm.folder), *import_path()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**inherited(token=True), **bare_environment()},
            cwd="/",
            start_new_session=True,  # an interrupt at the terminal is not meant for it
        )

    def end(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def main(folder: str) -> None:
    """Detach the VM in a folder."""
    from packer.run.manage.detach import detach  # here: who starts this does without its libraries

    os.umask(0o077)
    place = Path(folder)
    detach(the_vm(place.name, place.parent.parent))
