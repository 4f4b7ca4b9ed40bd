"""What judges and rankings come to, on the console and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from gptft.evaluation.contenders import Prompt
from gptft.evaluation.intervals import LEAST
from gptft.evaluation.judge import Judge
from gptft.evaluation.metrics import describe_metric
from gptft.evaluation.ranking import Pair, Ranking, Rating
from gptft.text.printable import printable


def describe_ranking(ranking: Ranking) -> str:
    """The contenders, the best first: Elo with its bounds, matches won, lost and tied."""
    lines = [["contender", "Elo", "95%", "won", "lost", "tied"]]
    for rating in ranking.ratings:
        low, high = rating.elo.low, rating.elo.high
        between = "" if low is None else f"{low:.0f} to {high:.0f}"
        lines.append([rating.name, describe_elo(rating), between, *map(str, (rating.wins, rating.losses, rating.ties))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    said = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in lines
    ]
    said += [f"  {describe_pair(pair)}" for pair in neighbours(ranking)]
    if any(rating.bound for rating in ranking.ratings):
        said.append("  who won or lost all matches against the others has no likeliest rating: those are bounds")
    if len({rating.group for rating in ranking.ratings}) > 1:
        said.append("  no match joins all of them: each group has a mean of 1000 of its own")
    return "\n".join(said)


def describe_elo(rating: Rating) -> str:
    return f"{rating.bound} {rating.elo.value:.0f}".strip()


def describe_pair(pair: Pair) -> str:
    """Whether one contender is better than the next."""
    value, low, high = pair.difference
    shown = "" if pair.differs else ", none shown"
    if pair.bound and low is not None:
        return f"{pair.a} over {pair.b}: {pair.bound} {value:+.0f}{shown}"
    if low is None:
        return f"{pair.a} over {pair.b}: {value:+.0f}, without bounds"
    return f"{pair.a} over {pair.b}: {value:+.0f} ({low:+.0f} to {high:+.0f}){shown}"


def neighbours(ranking: Ranking) -> list[Pair]:
    """The pairs that stand one behind the other."""
    names = [rating.name for rating in ranking.ratings]
    return [pair for pair in ranking.pairs if names.index(pair.b) == names.index(pair.a) + 1]


def describe_judge(judge: Judge, checks: dict[str, dict]) -> str:
    """What a judge's word is worth, and what became of its replies."""
    counts, name = judge.counts, judge.name
    lines = [f"judge {name}:"]
    for kind, found in checks.items():
        what = "scores" if kind == "score" else "verdicts"
        if found["useless"] is None:
            lines.append(
                f"  {what}: not checked: {found['n']} differences were planted, and {LEAST} are the fewest to tell"
            )
            continue
        tally = f"{found['right']} right, {found['wrong']} wrong, {found['undecided']} undecided"
        worth = "USELESS: no better than chance" if found["useless"] else "better than chance"
        by_kind = ", ".join(f"{kind} {each['right']} of {each['n']}" for kind, each in found["kinds"].items())
        lines.append(f"  {what}: {worth}: of {found['n']} planted differences {tally} (p {found['p']:.3g}; {by_kind})")
        turned, unparsable, asked = (found["counts"].get(key, 0) for key in ("position", "unparsable", "asked"))
        lines.append(f"    {turned} turned with the order; {unparsable} of {asked} replies unparsable")
    lost = [f"{counts[key]:,} {key}" for key in ("unparsable", "refused", "failed")]
    lines.append(f"  {counts['asked']:,} replies asked for: {', '.join(lost)}")
    if counts["compared"]:
        lines.append(
            f"  {counts['compared']:,} pairs: {counts['position']:,} verdicts turned with the order and are ties, "
            f"{counts['same']:,} pairs of equal texts were not asked about"
        )
    lines += [f"  failed: {why}" for why in judge.failures]
    return "\n".join(lines)


def judge_values(judge: Judge, checks: dict[str, dict]) -> dict:
    """The same for JSON."""
    names = ("asked", "unparsable", "refused", "failed", "compared", "same", "position")
    return {"name": judge.name, "prompts": judge.prompts._asdict(), "check": checks} | {
        "counts": {name: judge.counts[name] for name in names}
    }


def describe_agreement(first: str, second: str, found: dict) -> str:
    """How far two agree; where there is nothing to agree on, that."""
    if not found["n"]:
        return f"  {first} and {second}: nothing that both decided"
    kappa = "none, for both always say the same" if found["kappa"] is None else f"{found['kappa']:.2f}"
    return f"  {first} and {second} agree on {found['share']:.1%} of {found['n']:,}, kappa {kappa}"


def describe_answers(prompts: Sequence[Prompt], answers: dict[str, list[str]]) -> str:
    """Prompts with everyone's answers, side by side; nothing in them steers the terminal."""
    width = max(map(len, answers))
    blocks = []
    for number, prompt in enumerate(prompts):
        lines = [f"> {prompt.asked.prompt}".replace("\n", "\n> ")]
        for name, given in answers.items():
            lines.append(f"  {name.ljust(width)}  " + given[number].strip().replace("\n", "\n" + " " * (width + 4)))
        blocks.append("\n".join(lines))
    return printable("\n\n".join(blocks))


def ranking_values(ranking: Ranking) -> dict:
    """A ranking for JSON."""
    return {
        "prompts": ranking.prompts,
        "matches": ranking.matches,
        "ratings": [rating._asdict() | {"elo": rating.elo._asdict()} for rating in ranking.ratings],
        "pairs": [
            pair._asdict() | {"difference": pair.difference._asdict() | {"differs": pair.differs}}
            for pair in ranking.pairs
        ],
    }


def title(decider: str, found: dict | None) -> str:
    """The line above a ranking: who decided. `found`: what the check of a judge found; None for a metric."""
    return f"by {describe_metric(decider)}:" if found is None else f"by judge {decider}{mark(found)}:"


def mark(found: dict) -> str:
    """What stands beside a judge's name in a table, by its check: nothing where it is better than chance."""
    return {None: " (unchecked)", True: " (USELESS)", False: ""}[found["useless"]]
