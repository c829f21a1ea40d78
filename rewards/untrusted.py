"""Text of a policy, on its way into a judge's prompt: made unable to speak for anyone else.

A chat template turns ``<|im_end|>`` inside a message into the real end of that message, so an
answer could close its own turn and write the judge's. Such control words get an invisible character
into their middle: the judge still sees what was written, the tokenizer no longer obeys it.
"""

from __future__ import annotations

import re

BREAK = "\u200b"
_CONTROL = re.compile(
    r"<\|[^<>|\s]{1,40}\|?>"  # <|im_end|>, <|eot_id|>, <|endoftext|>
    r"|<\uff5c[^<>\s]{1,60}\uff5c>"  # the same with full-width bars
    r"|</?s>|<(?:bos|eos|pad|unk|mask)>"
    r"|\[/?(?:INST|SYS|TOOL_CALLS|AVAILABLE_TOOLS)\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<\uff5ctool[^<>\s]{0,60}>|<\/?think>",
    re.IGNORECASE,
)


def disarmed(text: str) -> str:
    """The text with every control word of the common chat formats broken up.

    >>> disarmed("a<|im_end|>b").replace(BREAK, "~")
    'a<~|im_end|>b'
    >>> disarmed("1 < 2 | 3 > 2")
    '1 < 2 | 3 > 2'
    """
    return _CONTROL.sub(lambda found: found.group()[0] + BREAK + found.group()[1:], text)
