"""What is installed beside Windows, as the database of its installers says.

Source: Microsoft, "Uninstall Registry Key" (learn.microsoft.com, windows/win32/msi).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from formats.windows.hive_query import View, Wanted
from packer.guest.windows.drives import Drives, Place

_FOLDERS = (
    r"Microsoft\Windows\CurrentVersion\Uninstall",
    r"Wow6432Node\Microsoft\Windows\CurrentVersion\Uninstall",
)
_VALUES = (
    *("DisplayName", "DisplayVersion", "Publisher"),
    *("InstallLocation", "DisplayIcon", "UninstallString"),
)
UNINSTALL_WANTED = tuple(Wanted(rf"{folder}\*", values=_VALUES) for folder in _FOLDERS)
"""What the SOFTWARE hive is asked for."""

MAX_PRODUCTS = 4096
_OF_MANY = frozenset({"", "/program files", "/program files (x86)", "/programdata", "/users"})
"""Folders that are no product's, whatever an entry says."""


@dataclass(frozen=True, slots=True)
class Product:
    """volume, folder: where it lies ("/Program Files/Harbour CAD")."""

    name: str
    version: str
    publisher: str
    volume: int
    folder: str

    @property
    def line(self) -> str:
        """What to call it when talking to people: "Harbour CAD 4.2 (Harbour Software GmbH)"."""
        ending = self.name.rpartition(" ")[2]  # many names end in a version, or its beginning
        names_it = self.version in self.name or self.version.startswith(ending)
        said = self.name if names_it else f"{self.name} {self.version}"
        return f"{said} ({self.publisher})" if self.publisher else said


def find_products(software: View, drives: Drives) -> Iterator[Product]:
    """Yield what is installed in a folder of its own on this disk; several may share one."""
    left = MAX_PRODUCTS
    for above in _FOLDERS:
        for key in software.subkeys(above):
            left -= 1
            if left < 0:
                return
            record = software.key(rf"{above}\{key}")
            values = {} if record is None else {one.name: one.text for one in record.values}
            texts = {name: (values.get(name) or "").strip() for name in _VALUES}
            place = _place(drives, texts)
            if texts["DisplayName"] and place is not None:
                version, publisher = texts["DisplayVersion"], texts["Publisher"]
                yield Product(texts["DisplayName"], version, publisher, place.volume, place.path)


def _place(drives: Drives, texts: Mapping[str, str]) -> Place | None:
    """Return the folder of a product: the one it names, else that of its icon or uninstaller."""
    for name in ("InstallLocation", "DisplayIcon", "UninstallString"):
        written, is_file = texts[name], name != "InstallLocation"
        place = drives.locate(_as_path(written)) if ":" in written else None
        if place is None:
            continue
        folder = place.path.rpartition("/")[0] if is_file else place.path.rstrip("/")
        outside = place.volume != drives.boot or not _is_below(folder, drives.folder)
        if outside and folder.casefold() not in _OF_MANY:
            return Place(place.volume, folder)
    return None


def _as_path(written: str) -> str:
    r"""Return the file of a command line or an icon: `"C:\a b\c.exe" /x`, `C:\a b\c.exe,0`."""
    if written.startswith('"'):
        return written[1:].partition('"')[0]
    end = written.casefold().find(".exe")
    return written if end < 0 else written[: end + 4]


def _is_below(path: str, folder: str) -> bool:
    return f"{path.casefold()}/".startswith(f"{folder.casefold()}/")


class Folders:
    """Products by folder, found by the longest beginning of a path, in any case."""

    def __init__(self, products: Iterable[Product]) -> None:
        self._products: dict[tuple[int, str], Product] = {}
        for one in products:
            self._products.setdefault((one.volume, one.folder.casefold()), one)

    def owner(self, volume: int, path: str) -> Product | None:
        """Return the product in whose folder a file lies. path: in lower case."""
        if not self._products:
            return None
        folder = path.rpartition("/")[0]
        while folder:
            product = self._products.get((volume, folder))
            if product is not None:
                return product
            folder = folder.rpartition("/")[0]
        return None
