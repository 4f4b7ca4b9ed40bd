"""The rows of tables as records: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from gptft.data.compressed import COMPRESSED, opened
from gptft.errors import Unreadable, UserError, need_extra

AT_ONCE = 1000  # rows of a Parquet file that are decoded together


def rows_of_text(path: Path, delimiter: str) -> Iterator[tuple[int, dict | Unreadable]]:
    """The rows of a table under its first row's names, each with the line on which it begins. A row with more or fewer
    fields is Unreadable. Raises UserError where names are missing or double, and for what is no table, and
    UnicodeDecodeError."""
    csv.field_size_limit(1 << 30)  # characters; the default cuts a long answer off with an error
    begin = 1
    try:
        with opened(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            names = next((row for row in rows if row), [])
            if not all(names) or len(set(names)) < len(names):
                raise UserError(f"{path}, line {rows.line_num}: every column must have a name of its own, not {names}")
            begin = rows.line_num + 1
            for row in rows:
                if len(row) == len(names):
                    yield begin, dict(zip(names, row, strict=True))
                elif any(field.strip() for field in row):  # not an empty line
                    yield begin, Unreadable(f"it has {len(row)} of {len(names)} fields", row)
                begin = rows.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {begin}: no table that can be read: {error}; a field that begins with a quotation mark must "
            "end with one, and have those inside it doubled"
        ) from None


def rows_of_parquet(path: Path, start: int = 0) -> Iterator[tuple[int, dict]]:
    """The rows of a Parquet file behind the first `start`, each with its number, 1 for the first. Raises UserError
    where it is none, and where the package that reads it is absent."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise need_extra("pyarrow", "data", f"{path}: to read it") from None
    if path.suffix in COMPRESSED:
        raise UserError(f"{path}: a Parquet file is compressed inside: give it as it is, without {path.suffix}")
    row, first = 0, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise UserError(f"{path}: every column must have a name of its own, not {names}")
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            while first < len(sizes) and row + sizes[first] <= start:  # groups of rows need not be decoded
                row, first = row + sizes[first], first + 1
            for batch in file.iter_batches(AT_ONCE, row_groups=range(first, len(sizes))):
                for record in batch.to_pylist():
                    row += 1
                    if row > start:
                        yield row, record
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path}, behind row {row}: no Parquet file that can be read: {why}") from None
