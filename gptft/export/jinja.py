"""Our prompt templates as Jinja source, so that an exported model carries one."""

from __future__ import annotations

import re
from datetime import date

from gptft.errors import UserError
from gptft.prompts import PLACEHOLDER, Template
from gptft.text.chat import ChatTemplate

CLOCK = re.compile(r"""\bstrftime_now\(\s*(["'])((?:(?!\1)[^\\])*)\1\s*\)""")  # a call with a plain text


def to_jinja(template: Template | ChatTemplate, eos_name: str, bos_name: str = "") -> str:
    """One of our templates as a Jinja chat template, so that an exported model carries it.

    `eos_name` is the special token that ends a response, `bos_name` the beginning-of-text if the vocabulary has one.
    Messages have no input, so a prompt of its own for records with one is not carried; parts of the user's own
    (--fields) cannot be. Raises UserError naming such a part.
    """
    if isinstance(template, ChatTemplate):
        return _as_trained(template)
    for part in PLACEHOLDER.findall(template.prompt):
        if part not in ("instruction", "input", "prompt"):
            raise UserError(f"the template {template.name!r} asks for {part!r}, which a conversation does not have")
    system = "{%- set turns = messages %}\n{%- if messages[0]['role'] == 'system' %}\n{%- set turns = messages[1:] %}\n"
    filled = ""
    if "system" in PLACEHOLDER.findall(template.system):
        filled = _fill(template.system, {"system": "messages[0]['content']"})
        filled = f"{{%- if messages[0]['content'].strip() %}}{filled}{{%- endif %}}\n"
        system += "" if template.system_in_prompt else filled
    else:
        refusal = f"it has a text for 'system', for which the template {template.name!r} has no place"
        system += (
            f"{{%- if messages[0]['content'].strip() %}}{{{{- raise_exception({_quote(refusal)}) }}}}{{%- endif %}}\n"
        )
    system += "{%- endif %}\n"
    if not template.multi_turn:
        refusal = f"the template {template.name!r} has no form for conversations of several turns"
        system += f"{{%- if turns | length > 2 %}}{{{{- raise_exception({_quote(refusal)}) }}}}{{%- endif %}}\n"
    values = {"instruction": "message['content']", "prompt": "message['content']", "input": "''"}
    place = PLACEHOLDER.search(template.prompt).start() if template.system_in_prompt else 0
    inside = "{%- if loop.first and messages[0]['role'] == 'system' %}" + filled + "{%- endif %}"
    user = (
        _fill(template.prompt[:place], {})
        + (inside if template.system_in_prompt else "")
        + _fill(template.prompt[place:], values)
    )
    between = _put(template.after) + _put(bos_name if template.bos else "")
    return (
        _put(bos_name) + system + "{%- for message in turns %}\n{%- if message['role'] == 'user' %}"
        f"{{%- if not loop.first %}}{between}{{%- endif %}}{user}\n"
        f"{{%- else %}}{_put(template.lead)}{{{{- message['content'] }}}}{_put(template.tail)}{_put(eos_name)}\n"
        "{%- endif %}\n{%- endfor %}"
    )


def _as_trained(template: ChatTemplate) -> str:
    """The source of a chat template, with what it was told in training written into it: others do not know of it."""
    source = template.jinja
    if template.day:
        told = date.fromisoformat(template.day)
        source = CLOCK.sub(lambda call: _quote(told.strftime(call[2])), source)
    return ("{%- set enable_thinking = false %}" if template.thinking == "strip" else "") + source


def _quote(text: str) -> str:
    """A text as a Jinja string."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _put(text: str) -> str:
    return f"{{{{- {_quote(text)} }}}}" if text else ""


def _fill(pattern: str, values: dict[str, str]) -> str:
    """A pattern of ours with its placeholders as Jinja expressions."""
    pieces = PLACEHOLDER.split(pattern)
    return "".join(f"{{{{- {values[piece]} }}}}" if n % 2 else _put(piece) for n, piece in enumerate(pieces))
