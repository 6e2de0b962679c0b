"""Files of `torch.save`, read without unpickling: a zip with one pickle, and the numbers of each storage beside it.

    ROOT/data.pkl      the pickle, in which tensors refer to storages by their key
    ROOT/data/KEY      the numbers of a storage
    ROOT/byteorder     little or big; missing in files of torch before 2.1

Members are stored as they are, so that a file cannot unpack to more than its size.
"""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from diffpolicy.interop.inert import Storage, TensorView
from diffpolicy.interop.pickles import MAX_BYTES, read_pickle
from diffpolicy.system.plain import shown, shown_text

MAX_DIRECTORY_BYTES = 4 * 2**20
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    ValueError,
    OSError,
)


class TorchFile:
    """An open file of `torch.save`; use it as a context manager.

    Attributes:
        content: what its pickle holds, as `read_pickle` gives it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of `torch.save`, is damaged, or its pickle is refused.
    """

    def __init__(self, path: Path) -> None:
        self._where = str(path)
        self._file: BinaryIO = path.open("rb")
        try:
            self._archive = self._opened()
            self._sizes = self._checked_sizes()
            self._root = self._found_root()
            self._storages: dict[str, Tensor] = {}
            if self._text("byteorder", "little") != "little":
                raise ValueError(
                    f"{self._where} has numbers in big-endian order, expected little; save it again on x86"
                )
            self.content: Any = read_pickle(self._read("data.pkl", MAX_BYTES), f"{self._where}: data.pkl")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tensor(self, view: TensorView) -> Tensor:
        """Read a tensor, which shares no memory with others.

        Raises:
            ValueError: its storage is missing or does not have the size that the pickle says.
        """
        flat = self._storage(view.storage)
        return flat.as_strided(view.shape, view.stride, view.offset).clone(memory_format=torch.contiguous_format)

    def _storage(self, storage: Storage) -> Tensor:
        found = self._storages.get(storage.key)
        if found is None:
            expected, name = storage.numel * storage.dtype.itemsize, f"data/{storage.key}"
            size = self._sizes.get(f"{self._root}/{name}")
            if size != expected:
                raise ValueError(f"{self._where}: {shown(name)} has {size} bytes, expected {expected}")
            data = bytearray(self._read(name, expected))
            found = torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            self._storages[storage.key] = found
        if found.dtype != storage.dtype or len(found) != storage.numel:
            raise ValueError(f"{self._where}: storage {shown(storage.key)} is described in two ways")
        return found

    def _opened(self) -> zipfile.ZipFile:
        size = self._file.seek(0, 2)
        self._file.seek(0)
        if self._file.read(4) != b"PK\x03\x04":
            raise ValueError(
                f"{self._where} is no zip; files of torch before 1.6 and other pickles are refused: open it where you "
                "trust it and save it again with torch.save(torch.load(FILE), NEW_FILE)"
            )
        self._file.seek(max(0, size - 98))
        directory = _directory_bytes(self._file.read())
        if directory is None or directory > MAX_DIRECTORY_BYTES:
            raise ValueError(
                f"{self._where} is damaged, or no zip as torch writes it: its directory has {directory} bytes, "
                f"expected at most {MAX_DIRECTORY_BYTES}; download it again"
            )
        try:
            return zipfile.ZipFile(self._file)
        except DAMAGED as error:
            raise ValueError(f"{self._where} is no whole zip ({shown_text(str(error))}); download it again") from None

    def _checked_sizes(self) -> dict[str, int]:
        """The members: name -> bytes."""
        members = self._archive.infolist()
        total, most = sum(one.file_size for one in members), self._file.seek(0, 2)
        packed = [one.filename for one in members if one.compress_type != zipfile.ZIP_STORED]
        if packed or total > most:
            told = f"packed members such as {shown(packed[0])}" if packed else f"{total} bytes in a file of {most}"
            raise ValueError(f"{self._where} has {told}, which torch does not write; refused")
        sizes = {one.filename: one.file_size for one in members}
        if len(sizes) < len(members):
            raise ValueError(f"{self._where} has two members of one name, refused")
        return sizes

    def _found_root(self) -> str:
        roots = [name.removesuffix("/data.pkl") for name in self._sizes if name.count("/") == 1]
        roots = [root for root in roots if f"{root}/data.pkl" in self._sizes]
        if len(set(roots)) != 1:
            raise ValueError(
                f"{self._where} is no file of torch.save: it has {len(set(roots))} members FOLDER/data.pkl"
            )
        if f"{roots[0]}/constants.pkl" in self._sizes:
            raise ValueError(f"{self._where} is a TorchScript archive, which holds code; expected a file of torch.save")
        return roots[0]

    def _text(self, name: str, missing: str) -> str:
        if f"{self._root}/{name}" not in self._sizes:
            return missing
        return self._read(name, 64).decode("ascii", errors="replace").strip()

    def _read(self, name: str, most: int) -> bytes:
        full = f"{self._root}/{name}"
        if self._sizes[full] > most:
            raise ValueError(f"{self._where}: {shown(name)} has {self._sizes[full]} bytes, expected at most {most}")
        try:
            return self._archive.read(full)
        except DAMAGED as error:
            told = shown_text(str(error))
            raise ValueError(f"{self._where}: {shown(name)} is damaged ({told}); download it again") from None


def _directory_bytes(end: bytes) -> int | None:
    """The size of a zip's directory, from the last 98 bytes of the file; None if they do not say it."""
    if end[-22:-18] != b"PK\x05\x06":
        return None
    large = int.from_bytes(end[-58:-50], "little") if end[-98:-94] == b"PK\x06\x06" else 0
    return max(large, int.from_bytes(end[-10:-6], "little"))
