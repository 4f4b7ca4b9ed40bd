"""Make a run's report.html anew from the files in its folder; several runs are shown side by side on one page."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from gptft.commands.parser import Parser
from gptft.errors import UserError


def add_arguments(parser: Parser) -> None:
    """The runs, and where the page goes."""
    parser.add_argument("runs", nargs="+", help="folders of runs; of several, one page for all")
    parser.group("the results").add_argument(
        "--out", default="", help="the page; empty: report.html in the folder of the run, of several in this folder"
    )


def run(options: Namespace) -> None:
    """Write the page and say where it is."""
    folders = [Path(word) for word in options.runs]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name the folders of runs")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice")
    from gptft.report.page import NAME, page_of, write_page
    from gptft.report.run_files import read_run
    from gptft.report.several import page_of_several

    runs = [read_run(folder) for folder in folders]
    out = Path(options.out or (folders[0] / NAME if len(folders) == 1 else NAME))
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    write_page(out, page_of(runs[0]) if len(runs) == 1 else page_of_several(runs))
    print(out)
