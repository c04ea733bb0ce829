"""Names that Windows' servicing gives: folders of WinSxS, manifests, packages, catalogs.

Sources: Microsoft, "Assembly Identity" and "Shared side-by-side assemblies" (learn.microsoft.com,
windows/win32/sbscs); "Package identity" as `dism /get-packages` prints it; folders of WinSxS of
Windows XP to 11 for the order of the parts.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MICROSOFT_TOKENS = frozenset(
    {
        "31bf3856ad364e35",  # Windows since Vista
        "6595b64144ccf1df",  # XP: common controls, GDI+
        "1fc8b3b9a1e18e3b",  # run-time libraries of Visual C++
        "b77a5c561934e089",  # .NET, the ECMA key
        "b03f5f7f11d50a3a",  # .NET, Microsoft's own libraries
    }
)
"""Ends of the SHA-1 of public keys that Microsoft signs components with."""

_VERSION = r"\d{1,5}\.\d{1,5}\.\d{1,5}\.\d{1,5}"
# x86_microsoft.windows.gdiplus_6595b64144ccf1df_1.0.2600.5512_x-ww_dfb54e0c (XP: language, hash)
# amd64_microsoft-windows-notepad_31bf3856ad364e35_10.0.19041.1_none_d5c3e8bbae1a2bf5
_FOLDER = re.compile(
    rf"(?P<architecture>[a-z0-9]{{1,16}})_[^/]{{1,200}}_(?P<token>[0-9a-f]{{16}})"
    rf"_(?P<version>{_VERSION})_[a-z0-9-]{{1,32}}_[0-9a-f]{{8,16}}"
)
# Package_1_for_KB2533552~31bf3856ad364e35~amd64~~6.1.1.1
_PACKAGE = re.compile(
    rf"[^~/]{{1,200}}~(?P<token>[0-9a-f]{{16}})~(?P<architecture>[a-z0-9]{{1,16}})~[a-z0-9-]{{0,32}}"
    rf"~(?P<version>{_VERSION})"
)
_PACKAGE_FILES = (".mum", ".cat")


class Release(NamedTuple):
    """What all files of a component are of: a version of Windows, for an architecture."""

    version: str
    architecture: str


def release_of_component(name: str) -> Release | None:
    """Return the release of a folder of WinSxS, or of a manifest without its ".manifest".

    name: in lower case. None for what is no such name, and for components of others than Microsoft.
    """
    return _release(_FOLDER.fullmatch(name))


def release_of_package(name: str) -> Release | None:
    """Return the release of a package's file (".mum", ".cat"), whose name is its identity.

    name: in lower case; None as above.
    """
    return _release(_PACKAGE.fullmatch(name[:-4])) if name.endswith(_PACKAGE_FILES) else None


def _release(found: re.Match[str] | None) -> Release | None:
    if found is None or found["token"] not in MICROSOFT_TOKENS:
        return None
    return Release(found["version"], found["architecture"])
