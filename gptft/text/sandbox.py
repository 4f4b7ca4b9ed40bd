"""Where a checkpoint's chat template runs. It is somebody else's program and comes with a download: it must reach
nothing but its variables (jinja2's sandbox sees to that), and it must come to an end in bounded time and memory.

Every rendering has a budget. Each round of a loop and each call of a macro takes from it, and so does each text that an
operator, a filter, a method or a block makes. No one value may be larger than `largest`; what could become so in a
single step, such as `'a' * 10**11`, is estimated before it is done.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from functools import wraps

LARGEST = 10_000_000  # characters of a value, or of the whole rendering; and 100 more for each one in the messages
ROUNDS = 1_000_000  # of loops, and calls of macros; and four more for each character
ROUND = 250  # what one of them takes from the budget, in characters made
SECONDS = 60
BITS = 100_000  # of a whole number
SPECS = re.compile(r"%(?:\([^)]*\))?([-+ #0-9.*]*)|\{[^{}]*:([^}]*)")  # of '%5d' and '{:5}' what stands for 5
PADS = {"center", "ljust", "rjust", "zfill", "to_bytes", "batch", "slice"}  # these make a text of a given length
REPEATS = {"indent", "expandtabs", "tojson"}  # these make something of a given length many times
INSERTS = {"replace", "translate", "wordwrap", "urlize", *REPEATS}  # these put what they are given in many places


class Refused(Exception):
    """What a chat template says with raise_exception."""


class TooMuch(Exception):
    """What a chat template does without bound."""


def one_line(error) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 1000 else line[:1000] + " ..."


class Budget:
    """What a rendering may still do."""

    def __init__(self, size: int = 0) -> None:
        self.begin(size)

    def begin(self, size: int) -> None:
        """A new budget, for messages of `size` characters."""
        self.largest = LARGEST + 100 * size
        self.left = ROUND * (ROUNDS + 4 * size)
        self.deadline = time.monotonic() + SECONDS

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise TooMuch("runs for too long: its loops and what they make are beyond all bounds")
        if time.monotonic() > self.deadline:
            raise TooMuch(f"runs for more than {SECONDS} seconds")

    def tick(self) -> bool:
        """Stands at the start of the body of every loop and macro."""
        self.spend(ROUND)
        return True

    def check(self, size: int) -> None:
        if size > self.largest:
            raise TooMuch(f"makes a text of more than {self.largest:,} characters, or a value as large")

    def weigh(self, value) -> int:
        """About how many characters a value has, written out."""
        total, left = 0, [value]
        while left:
            item = left.pop()
            total += 1
            if isinstance(item, (str, bytes)):
                total += len(item)
            elif isinstance(item, int):
                if item.bit_length() > BITS:
                    raise TooMuch("makes a number of more than 30,000 digits")
                total += item.bit_length() // 3
            elif isinstance(item, Mapping):
                left += [*item.keys(), *item.values()]
            elif type(item).__name__ == "Namespace":  # jinja2's
                left.append(item._Namespace__attrs)
            elif isinstance(item, Collection) and not isinstance(item, range):
                left += item
            self.check(total + len(left))
        return total

    def weighed(self, value):
        self.spend(self.weigh(value))
        return value

    def concat(self, chunks: Iterable[str]) -> str:
        """Joins what a template, a macro or a block has written."""
        parts, total = [], 0
        for chunk in chunks:
            parts.append(chunk)
            total += len(chunk)
            self.check(total)
        self.spend(total)
        return "".join(parts)

    def tilde(self, *values) -> str:
        """`a ~ b`"""
        self.check(sum(map(self.weigh, values)))
        return self.weighed("".join(map(str, values)))

    # ---- what a single step could make

    def check_operator(self, operator: str, left, right) -> None:
        if operator == "*":
            for n, other in ((left, right), (right, left)):
                if isinstance(n, int) and isinstance(other, (str, bytes, list, tuple)):
                    self.check(n * self.weigh(other))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > BITS and abs(left) > 1:
                raise TooMuch("makes a number of more than 30,000 digits")
        elif operator == "%" and isinstance(left, (str, bytes)):
            self.check_format(left if isinstance(left, str) else left.decode("latin-1"), right)

    def bounded(self, name: str, made: Callable) -> Callable:
        """A filter within the budget."""
        first = 1 if hasattr(made, "jinja_pass_arg") else 0  # jinja2 puts the context or so before the value

        @wraps(made)
        def within(*args, **kwargs):
            head, value, rest = args[:first], args[first], args[first + 1 :]
            if name not in ("length", "count", "first", "last"):
                self.weigh(value)
            if name in ("join", "sum"):
                value = list(value)
            rest = self.estimate(name, value, rest, kwargs)
            return self.weighed(made(*head, value, *rest, **kwargs))

        return within

    def estimate(self, name: str, value, args: tuple, kwargs: dict) -> tuple:
        """Refuse a filter or method whose result would be too large; its arguments, an iterator among them as a list,
        which joining would use up."""
        given = [*args, *kwargs.values()]
        length = max((abs(n) for n in given if isinstance(n, int)), default=0)
        if name == "join":
            pieces, between = value, given
            if not isinstance(value, list):  # the method: what is joined is its argument
                pieces, between = list(*args), value
                args = (pieces,)
            self.check(self.weigh(pieces) + len(pieces) * self.weigh(between))
        elif name == "sum" and given:
            self.check(len(value) * self.weigh(value))
        elif name == "format":
            self.check_format(str(value), given)
        elif name == "round":
            self.check(1000 * length)
        elif name in PADS:
            self.check(length)
        elif name in INSERTS:
            text = value if isinstance(value, str) else ""
            mark = {"indent": "\n", "expandtabs": "\t", "replace": given[0] if given else ""}.get(name, "")
            places = 1 + text.count(mark) if text and isinstance(mark, str) else self.weigh(value)
            each = sum(self.weigh(item) for item in given if not isinstance(item, int))
            self.check(places * (each + (length if name in REPEATS else 0)))
        return args

    def check_format(self, pattern: str, values) -> None:
        """`pattern` % values, or pattern.format(*values)."""
        specs = ["".join(groups) for groups in SPECS.findall(pattern)]
        if any("*" in spec or "{" in spec for spec in specs):
            raise TooMuch("formats a text to a width that is itself a value, which is not supported")
        numbers = [number for spec in specs for number in re.findall(r"\d+", spec)]
        padding = sum(int(number) if len(number) <= 12 else self.largest for number in numbers)
        places = pattern.count("%") + pattern.count("{")
        self.check(len(pattern) + padding + places * self.weigh(values))


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    """Jinja as transformers sets it up for chat templates, in jinja2's sandbox, with a `budget`."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant writes; it changes no text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            # a call block has a scope of its own, as in transformers
            return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

        def _same(self, caller):
            return caller()

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "%", "**"})

        def _parse(self, source, name, filename):
            return counting().visit(super()._parse(source, name, filename)).set_environment(self)

        def call_binop(self, context, operator, left, right):
            budget.check_operator(operator, left, right)
            return budget.weighed(super().call_binop(context, operator, left, right))

        def call(self, context, obj, /, *args, **kwargs):
            owner = getattr(obj, "__self__", None)
            if isinstance(owner, (str, bytes, int)):
                args = budget.estimate(obj.__name__, owner, args, kwargs)
            return budget.weighed(super().call(context, obj, *args, **kwargs))

        def wrap_str_format(self, value):
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None

            def format(*args, **kwargs):
                budget.check_format(str(value.__self__), (args, kwargs))
                return wrapped(*args, **kwargs)

            return format

    def raise_exception(message):
        budget.weigh(message)
        raise Refused(one_line(message))

    budget = Budget()
    made = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.budget, made.concat, made.finalize = budget, budget.concat, budget.weighed
    made.tick, made.tilde, made.weighed = budget.tick, budget.tilde, budget.weighed  # see counting()
    made.filters["tojson"] = tojson
    made.filters = {name: budget.bounded(name, use) for name, use in made.filters.items()}
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    del made.globals["lipsum"]
    return made


def counting():
    """What puts into a template the counting of its steps and the weighing of what its operators make."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def ask(name: str, values: list, node):
        return nodes.Call(nodes.EnvironmentAttribute(name), values, [], None, None).set_lineno(node.lineno)

    class Counting(NodeTransformer):
        def visit_For(self, node):
            if node.test is not None:
                node.test = nodes.And(ask("tick", [], node), node.test).set_lineno(node.lineno)
            return self.visit_Macro(node)

        def visit_Macro(self, node):
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(ask("tick", [], node)).set_lineno(node.lineno))
            return node

        visit_CallBlock = visit_Macro

        def visit_Concat(self, node):
            self.generic_visit(node)
            return ask("tilde", node.nodes, node)

        def visit_Getitem(self, node):
            self.generic_visit(node)
            return ask("weighed", [node], node) if isinstance(node.arg, nodes.Slice) else node

    return Counting()
