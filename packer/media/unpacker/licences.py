"""LICENSES.txt: under which terms the parts of the carried program may be passed on."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from email.message import Message
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import cast

_RULE = "=" * 78
_CLASSIFIER = "License :: OSI Approved :: "


def licences(names: Sequence[str], libraries: Sequence[str]) -> str:
    """Return the text.

    names: of installed distributions. libraries: files of this host's system that are carried.
    """
    found = [distribution(name) for name in names]
    lines = [f"  {one.name} {one.version}: {_terms(one)}" for one in found]
    parts = [
        "The program beside this file holds a Python interpreter and these distributions:\n",
        *lines,
        "\nand these libraries of the system that it was made on, under that system's terms:\n",
        *(f"  {name}" for name in libraries),
    ]
    texts = [("Python", _text_of_python()), *((one.name, _texts(one)) for one in found)]
    parts += [f"\n{_RULE}\n{name}\n{_RULE}\n\n{text}" for name, text in texts if text]
    return "\n".join(parts) + "\n"


def _terms(one: Distribution) -> str:
    metadata = cast(Message, one.metadata)
    classifiers = [
        text.removeprefix(_CLASSIFIER)
        for text in metadata.get_all("Classifier", [])
        if text.startswith(_CLASSIFIER)
    ]
    said = metadata.get("License-Expression") or ", ".join(classifiers) or metadata.get("License")
    return str(said or "see its text").strip().splitlines()[0]


def _texts(one: Distribution) -> str:
    """Return the files that its author put beside its metadata for this purpose."""
    names = cast(Message, one.metadata).get_all("License-File", [])
    files = [file for file in one.files or () if ".dist-info" in file.parts[0]]
    found = [
        str(file.locate())
        for name in names
        for file in files
        if file.as_posix().endswith(f"/{name}")
    ]
    texts = (Path(path).read_text("utf-8", "replace").strip() for path in dict.fromkeys(found))
    return "\n\n".join(texts)


def _text_of_python() -> str:
    place = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    return place.read_text("utf-8", "replace").strip() if place.is_file() else ""
