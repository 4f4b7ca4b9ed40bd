"""What the commands that ask judges share: the flags, and the judges behind them."""

from __future__ import annotations

from argparse import Namespace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from gptft.commands.common import MODEL
from gptft.commands.parser import Parser, whole_number
from gptft.errors import UserError

if TYPE_CHECKING:
    from gptft.evaluation.judge import Judge


def add_judge(parser: Parser) -> None:
    """Who judges, how it is asked, and where what it says is kept."""
    group = parser.group("judges")
    group.add_argument(
        "--judge", nargs="+", default=[], help=f"{MODEL}; or the URL of a server that speaks OpenAI's protocol"
    )
    group.add_argument(
        "--judge_model", nargs="+", default=[], help="the names of the models behind the URLs, in their order"
    )
    group.add_argument(
        "--judge_prompt", default="", help="a .toml file with prompts of your own: the texts score, pair or both"
    )
    group.add_argument("--show_judge_prompt", action="store_true", help="print the prompts and end")
    group.add_argument(
        "--judge_tokens", type=whole_number(at_least=1), default=16, help="longest reply of a judge, tokens [16]"
    )
    group.add_argument(
        "--judge_check",
        type=whole_number(at_least=0),
        default=24,
        help="planted differences that a judge is asked about first; 0: none [24]",
    )
    group.add_argument(
        "--verdicts",
        default="",
        help="the .jsonl file of what judges say, each reply as it comes; what stands there is not asked again; empty: "
        "OUT.verdicts.jsonl beside --out",
    )


def check_judges(options: Namespace) -> bool:
    """Whether there is anything to judge. Raises UserError for flags that do not go together; ends the command after
    --show_judge_prompt."""
    from gptft.evaluation.judge import read_judge_prompts, show_judge_prompts

    prompts = read_judge_prompts(options.judge_prompt)
    if options.show_judge_prompt:
        print(show_judge_prompts(prompts))
        raise SystemExit(0)
    if not options.judge:
        for name in ("judge_model", "judge_prompt", "verdicts"):
            if getattr(options, name):
                raise UserError(f"--{name}: there is no --judge")
        return False
    urls = [word for word in options.judge if is_url(word)]
    if len(urls) != len(options.judge_model):
        raise UserError(f"--judge_model: {len(options.judge_model)} names for {len(urls)} URLs under --judge")
    if urls and not verdicts_path(options):
        raise UserError(f"--judge {urls[0]}: what it says must be kept: name a file with --verdicts, or --out")
    if options.verdicts and Path(options.verdicts).suffix != ".jsonl":
        raise UserError(f"--verdicts {options.verdicts}: name a .jsonl file")
    if options.verdicts and options.out and Path(options.out).resolve() in Path(options.verdicts).resolve().parents:
        raise UserError(f"--verdicts {options.verdicts}: it would lie in --out, which must be new: name it beside that")
    return True


def open_judges(options: Namespace, device) -> list[Judge]:
    """The judges, in the order of their words. Raises UserError for what could not be asked or kept, so that this comes
    before what takes long."""
    from gptft.evaluation.judge import Verdicts, open_judge, read_judge_prompts

    names, verdicts = iter(options.judge_model), Verdicts(verdicts_path(options))
    prompts = read_judge_prompts(options.judge_prompt)
    named = [(word, next(names) if is_url(word) else "") for word in options.judge]
    if len(set(named)) < len(named):
        raise UserError("--judge: one judge is named twice")
    return [open_judge(word, name, device, options.judge_tokens, prompts, verdicts) for word, name in named]


def verdicts_path(options: Namespace) -> Path | None:
    """Where what judges say is kept."""
    if options.verdicts:
        return Path(options.verdicts)
    return Path(f"{options.out.rstrip('/')}.verdicts.jsonl") if options.out else None


def is_url(word: str) -> bool:
    return word.startswith(("http://", "https://"))


def judge_answers(options: Namespace, judges: list[Judge], rows: list[dict], sides: tuple[str, ...]) -> dict:
    """Have the answers of `evaluate` judged, and say what the judges are worth -> what evaluation.json holds of it.

    Each judge gives every answer a score and, of two sides, says which is better; the rows get both under "judges".
    """
    from gptft.evaluation.compare import by_family, score
    from gptft.evaluation.judge import Asked, prompt_text
    from gptft.evaluation.judge_check import agreement, check, plant
    from gptft.evaluation.matches import prefer_rows, score_rows
    from gptft.evaluation.metrics import METRICS
    from gptft.evaluation.responses import prompt_and_expected
    from gptft.report.judged import describe_agreement, describe_judge, judge_values, mark

    pairs = [prompt_and_expected(row["record"], options.settings.get("fields", {})) for row in rows]
    asked = [Asked(prompt_text(parts), expected) for parts, expected in pairs]
    planted = plant(asked, options.judge_check)
    exact = METRICS["exact_match"]
    tables, values, good = {}, [], {}
    for judge in judges:
        checks = {"score": check(judge, planted, "score")}
        found = {"score": score_rows(judge, rows, asked, sides)}
        if len(sides) == 2:
            checks["pair"] = check(judge, planted, "pair")
            found["pair"] = prefer_rows(judge, rows, asked, sides)
        for kind, shares in found.items():
            name = f"{'score' if kind == 'score' else 'preferred'} by {judge.name}"
            scored = [(row, share) for row, share in zip(rows, shares, strict=True) if share]
            if scored:
                tables[name + mark(checks[kind])] = by_family(exact, scored, sides)
            for row, share in scored:
                row.setdefault("judges", {})[name] = dict(zip(sides, share, strict=True))
        none = [None] * len(sides)
        good[judge.name] = [
            None if each is None else each >= 0.5 for shares in found["score"] for each in shares or none
        ]
        print(describe_judge(judge, checks))
        values.append(judge_values(judge, checks))
    good["exact match"] = [bool(each) for row in rows for each in score(exact, row, sides)]
    agreements = []
    for first, second in combinations(good, 2):
        found = agreement(good[first], good[second])
        agreements.append({"first": first, "second": second, **found})
        print(describe_agreement(first, second, found))
    return {"metrics": tables, "judges": values, "agreement": agreements}
