"""Which volumes hold a Windows, told by names alone."""

from __future__ import annotations

from dataclasses import dataclass

from packer.survey.model import Survey

HIVE = "/system32/config/system"
"""Below its folder every Windows since NT 3.1 has this file, in any case."""

USUAL_FOLDERS = ("/windows", "/winnt")
"""Where setup puts it: \\WINNT up to Windows 2000. XP's setup lets people choose another one."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A Windows: row of its volume, and its folder there as it is written ("/WINDOWS")."""

    volume: int
    folder: str

    @property
    def is_usual(self) -> bool:
        """Whether setup would have chosen the folder."""
        return self.folder.casefold() in USUAL_FOLDERS

    def lies_at(self, volume: int, folder: str) -> bool:
        """Return whether it is the one at a folder of a volume, in any case."""
        return self.volume == volume and self.folder.casefold() == folder.casefold()


def find_installations(survey: Survey) -> tuple[Installation, ...]:
    """Return every Windows in a folder of a volume's root, in the order of the survey.

    Older ones that were moved away (Windows.old) lie deeper and are none.
    """
    found: dict[tuple[int, str], Installation] = {}
    for row, name in enumerate(survey.name):
        # The quick test first: there may be a million names.
        if name[-len(HIVE) :].casefold() != HIVE:
            continue
        folder = name[: -len(HIVE)]
        if folder.count("/") == 1 and len(folder) > 1:
            volume = int(survey.volume[survey.name_stream[row]])
            one = Installation(volume, folder)
            found.setdefault((volume, folder.casefold()), one)
    return tuple(found.values())
