"""The linter's short form, a line at the start of every run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path

from gptft.curation.findings import count_kinds
from gptft.curation.lengths import count_lengths
from gptft.curation.lint import Report, look_through, measure_words
from gptft.data.cache import cache_directory, key_of
from gptft.data.compressed import kind_of
from gptft.data.examples import Dataset
from gptft.files import atomic_write, sha256_file
from gptft.prompts import Template
from gptft.text.chat import ChatTemplate

EDITION = 1  # raise it when other things are found in the same files
AT_MOST = 50_000  # records of each group that are looked at, so that no run waits long for it


def describe_data(datasets: dict[str, Dataset], fields: dict[str, str], template: Template | ChatTemplate) -> str:
    """How many findings of which kinds the linter has in the files of a run, near duplicates and leaks apart, which
    take longer; of a corpus, in the first records of its sources. The same files are looked through once: what was
    found is cached under the hash of their content. The ledgers keep it, and how long the examples are, for the
    summary of the run."""
    groups = {group: dataset.surveyed for group, dataset in datasets.items()}
    files = {
        group: [[kind_of(path), sha256_file(path)] for path in map(Path, names)] for group, names in groups.items()
    }
    has_ftfy = importlib.util.find_spec("ftfy") is not None
    decides = [EDITION, AT_MOST, has_ftfy, files, sorted(fields.items()), template.unwraps]
    cached = cache_directory() / f"lint-{key_of(decides)}.json"
    try:
        counts, records, stopped = json.loads(cached.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        report = Report(groups)
        look_through(report, fields, template.unwraps, AT_MOST)
        measure_words(report)
        counts, records, stopped = count_kinds(report.findings), report.records, report.stopped
        with contextlib.suppress(OSError), atomic_write(cached) as file:
            json.dump([counts, records, stopped], file)
    stopped |= any(dataset.in_part for dataset in datasets.values())
    datasets["data"].ledger["findings"] = {"kinds": counts, "records": records, "in_part": stopped}
    for dataset in datasets.values():
        dataset.ledger["lengths"] = count_lengths(dataset)
    what = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    where = f"{'the first ' * stopped}{records:,} record{'s' * (records != 1)}"
    return f"lint: {f'{what}; python -m gptft lint shows them' if what else 'nothing found'}, in {where}"
