"""Files: atomic writes, the embedded resources, digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from gptft.errors import UserError

HASHED_WHOLE = 10**9  # bytes of files that are hashed; more would be a wait before every run


def resource(path: str) -> Path:
    """A file of the project itself, such as `data/vocab.tiktoken`.

    In a checkout it lies beside the package; in an installed wheel it is carried in `gptft/_resources`.
    """
    package = Path(__file__).resolve().parent
    for base in (package / "_resources", package.parent):
        if (base / path).exists():
            return base / path
    raise UserError(f"the installation lacks its own file {path!r}: reinstall gptft")


def sync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut. Windows cannot open a directory and needs no such call."""
    if os.name != "nt":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Put every file of a folder, and the folder, on disk."""
    for file in directory.iterdir():
        with open(file, "r+b") as opened:  # Windows syncs files that are open for writing only
            os.fsync(opened.fileno())
    sync_directory(directory)


def beside(path: Path) -> Path:
    """A name for a temporary file beside `path`, which no other thread or process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator:
    """Open a temporary file beside `path`; on success flush it to disk and rename it over `path`.

    A crash or a full disk leaves the old file as it was and no temporary file behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; on success it is flushed to disk and becomes `path`, which must not exist or be
    an empty folder. A failure leaves nothing behind; one of the disk is a UserError."""
    temporary = beside(path)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        sync_tree(temporary)
        if path.exists():
            path.rmdir()
        os.rename(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error})", 1) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def lock(descriptor: int) -> None:
    """Lock an open file without waiting. Raises BlockingIOError where it is locked, OSError where nothing can be."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind the text: there what is locked cannot be read either
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                raise BlockingIOError from None
            raise
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def json_line(value) -> str:
    """JSON on one readable line. Text that UTF-8 cannot hold (half of a surrogate pair) is written as escapes."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(value)
    return line + "\n"


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write a .jsonl file whole, or leave the old one."""
    with atomic_write(path) as file:
        file.writelines(map(json_line, rows))


def read_json_lines(path: Path) -> list[dict]:
    """The rows of a .jsonl file that gptft wrote."""
    # not splitlines: a text may hold other line separators, which JSON does not escape
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def append_json_line(path: Path, row: dict) -> None:
    """Add a row to a .jsonl file so that it stays, whatever happens next."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_line(row))
        file.flush()
        os.fsync(file.fileno())


def read_appended(path: Path) -> list[dict]:
    """The rows of a .jsonl file that grows row by row; a last line that was cut short is taken away."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    rows = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    return rows


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises UserError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last: a thousand brackets, one in the other
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object")
    return values


def fingerprints(paths: Iterable[Path]) -> list[str]:
    """What tells that files are the same as before: a hash of their content, or, where all together are large, of their
    sizes and times of change."""
    paths = list(paths)
    stats = [path.stat() for path in paths]
    if sum(stat.st_size for stat in stats) <= HASHED_WHOLE:
        return [sha256_file(path) for path in paths]
    return [f"{stat.st_size} bytes of {stat.st_mtime_ns}" for stat in stats]


def is_as_before(path: Path, fingerprint: str) -> bool:
    """Whether a file has the fingerprint that it had."""
    stat = path.stat()
    if " bytes of " in fingerprint:
        return fingerprint == f"{stat.st_size} bytes of {stat.st_mtime_ns}"
    return fingerprint == sha256_file(path)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
