"""NTFS: whose bytes are whose, and which are nobody's."""

from formats.filesystem.ntfs.reader import probe, read

__all__ = ["probe", "read"]
