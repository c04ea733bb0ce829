from packer.media.unpacker.carried import KINDS, Unpacker, find_unpacker

__all__ = ["KINDS", "Unpacker", "find_unpacker"]
