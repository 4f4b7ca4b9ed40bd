"""Rank models and files of answers: all play one another on the same prompts, judged by a model or by a metric.

Contenders are models, and files of answers (.jsonl, .json, a table): a record each, with the answer under answer,
response, output or after, or under KEY as FILE:KEY, and with the prompt or in its order. Ratings are Elo, by the model
of Bradley and Terry, with bounds of 95%.
"""

from __future__ import annotations

import json
from argparse import Namespace
from itertools import combinations
from pathlib import Path

from gptft.commands.common import MODEL, new_folder
from gptft.commands.judging import add_judge, check_judges, open_judges
from gptft.commands.parser import Parser, whole_number
from gptft.config import resolve
from gptft.errors import UserError

UNFINISHED = {"answers.jsonl", "matches.jsonl"}  # what a ranking that failed has written


def add_arguments(parser: Parser) -> None:
    """Who is ranked, on what, and who decides."""
    parser.add_argument("contenders", nargs="*", help=f"{MODEL}; or a file of answers, FILE or FILE:KEY")
    parser.add_fields("data", "data", "fields", data="files of prompts; probes: the set that gptft carries")
    group = parser.group("data")
    group.add_argument(
        "--samples", type=whole_number(at_least=0), default=100, help="prompts, the first so many; 0: all [100]"
    )
    group.add_argument(
        "--max_new_tokens", type=whole_number(at_least=1), default=100, help="longest response, tokens [100]"
    )
    group.add_argument("--batch_size", type=whole_number(at_least=1), default=16, help="prompts a batch [16]")
    parser.add_fields("the machine", "device")
    group = parser.group("the matches")
    wins = "without a judge: the metric whose higher score wins, by its name in evaluation.json [token_f1]"
    group.add_argument("--by", default="", help=wins)
    add_judge(parser)
    group = parser.group("the results")
    group.add_argument("--show", action="store_true", help="print the prompts with everyone's answers")
    group.add_argument("--out", default="", help="a new folder for ranking.json, answers.jsonl and matches.jsonl")


def run(options: Namespace) -> None:
    """Print the answers that are asked for, what the judges are worth, and the ranking; with --out keep them."""
    judged = check_judges(options)
    names, out = options.contenders, new_folder(options.out, UNFINISHED)
    if len(names) < 2:
        raise UserError("name two contenders or more: models, or files of answers")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice} is named twice")
    if "data" not in options.settings:
        raise UserError("--data is missing: name the files of prompts, or probes")
    config = resolve("", {"init": "tiny", **options.settings})
    from gptft.device import pick_device
    from gptft.evaluation.contenders import ask_model, read_answers, read_prompts, split_key
    from gptft.evaluation.judge_check import check, plant

    decide_by = pick_metric(options, judged)
    device = pick_device(config.device)
    prompts = read_prompts(config.data, config.fields, options.samples)
    answers = {}
    for name in names:  # a file that cannot be read ends the command before a model is asked
        path, key = split_key(name)
        answers[name] = read_answers(path, key, prompts, config.fields) if path else None
    judges = open_judges(options, device) if judged else []
    planted = plant([prompt.asked for prompt in prompts], options.judge_check)
    checks = {judge.name: check(judge, planted, "pair") for judge in judges}  # first: it may not reply
    for name in names:
        if answers[name] is None:
            answers[name] = ask_model(name, prompts, device, options.max_new_tokens, options.batch_size)
    every = [number for number in range(len(prompts)) if all(given[number] is not None for given in answers.values())]
    for name, given in answers.items():
        if missing := given.count(None):
            print(f"{name} has no answer to {missing:,} of {len(prompts):,} prompts, which are left out")
    if not every:
        raise UserError("there is no prompt that all contenders answer")
    prompts = [prompts[number] for number in every]
    answers = {name: [given[number] for number in every] for name, given in answers.items()}
    if options.show:
        from gptft.report.judged import describe_answers

        print(describe_answers(prompts, answers), end="\n\n")
    deciders = [(judge.name, judge.compare, judge) for judge in judges] or [(*decide_by, None)]
    if out:
        write_answers(out, prompts, answers)
    results = decide_all(checks, prompts, answers, deciders)
    if out:
        write_results(out, len(prompts), results)


def pick_metric(options: Namespace, judged: bool) -> tuple:
    """(name, who decides) of --by. Raises UserError."""
    from gptft.errors import nearest
    from gptft.evaluation.matches import by_metric
    from gptft.evaluation.metrics import measurable

    if judged and options.by:
        raise UserError("--by and --judge: let one of them decide")
    name = options.by or "token_f1"
    known, absent = measurable()
    if name not in known:
        raise UserError(f"--by {name}: {absent.get(name, f'there is no such metric{nearest(name, known)}')}")
    return name, by_metric(known[name])


def decide_all(checks: dict, prompts: list, answers: dict, deciders: list) -> dict:
    """Play all matches by each who decides, and print what they come to -> what ranking.json holds, and under
    "matches" every match by each. `checks`: what the judges are worth."""
    from gptft.evaluation.judge_check import agreement
    from gptft.evaluation.matches import by_metric, play
    from gptft.evaluation.metrics import METRICS
    from gptft.evaluation.ranking import rank
    from gptft.report.judged import (
        describe_agreement,
        describe_judge,
        describe_ranking,
        judge_values,
        ranking_values,
        title,
    )
    from gptft.text.progress import progress

    total = len(prompts) * len(list(combinations(answers, 2)))
    rankings, played, judges = {}, {}, []
    for name, decide, judge in deciders:
        matches = play(prompts, answers, decide)
        played[name] = list(progress(matches, total=total, unit="matches"))
        decided = [match for match in played[name] if match]
        if judge:
            print(describe_judge(judge, {"pair": checks[name]}))
            judges.append(judge_values(judge, {"pair": checks[name]}))
        if not decided:
            print(f"{title(name, checks.get(name))} no match was decided")
            continue
        ranking = rank(decided)
        print(f"{title(name, checks.get(name))} {ranking.matches:,} matches on {ranking.prompts:,} prompts")
        print(describe_ranking(ranking))
        rankings[name] = ranking_values(ranking)
    exact = list(play(prompts, answers, by_metric(METRICS["exact_match"]))) if judges else []
    compared = {**played, "exact match": exact} if any(exact) else played
    agreements = []
    for first, second in combinations(compared, 2):
        scores = [[match and match.score for match in compared[name]] for name in (first, second)]
        found = agreement(*scores)
        agreements.append({"first": first, "second": second, **found})
        print(describe_agreement(first, second, found))
    return {"rankings": rankings, "judges": judges, "agreement": agreements, "matches": played}


def write_answers(out: Path, prompts: list, answers: dict) -> None:
    """Keep what everyone said, before a judge may fail."""
    from gptft.files import write_json_lines

    out.mkdir(parents=True, exist_ok=True)
    write_json_lines(
        out / "answers.jsonl",
        (
            {"record": prompt.record, "expected": prompt.expected}
            | {"answers": {name: given[number] for name, given in answers.items()}}
            for number, prompt in enumerate(prompts)
        ),
    )


def write_results(out: Path, count: int, results: dict) -> None:
    """Keep the matches and the ranking."""
    from gptft.files import atomic_write, write_json_lines

    write_json_lines(
        out / "matches.jsonl",
        (
            {"by": name, **match._asdict()}
            for name, matches in results.pop("matches").items()
            for match in matches
            if match
        ),
    )
    with atomic_write(out / "ranking.json") as file:
        json.dump({"records": count, **results}, file, indent=1)
