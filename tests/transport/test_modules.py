"""What each module is there for is said in one place."""

from __future__ import annotations

import re
from pathlib import Path

from packer import transport


def test_the_list_of_modules_is_complete() -> None:
    listed = re.findall(r"^    (\w+) +\w", transport.__doc__ or "", re.MULTILINE)
    folder = Path(transport.__file__).parent
    assert sorted(listed) == sorted(
        path.stem for path in folder.glob("*.py") if path.stem != "__init__"
    )
