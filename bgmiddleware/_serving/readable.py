"""Terminal output for who has no terminal: the text that a person would see."""

import re

__all__ = ["readable"]

# CSI, OSC and the other string sequences, and the two-character escapes (ECMA-48 §5).
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\|(?=\n)|$)"
    r"|\x1b[ -/]*[0-~]?"
)
_OVERWRITTEN = re.compile(r"^[^\n]*\r(?!\n|$)", re.MULTILINE)
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127, *range(128, 160)))
_BIDI = {code: f"[U+{code:04X}]" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_SHOWN = {**_CONTROLS, **_BIDI}


def readable(text: str) -> str:
    """Return terminal output as the text that a person would see: without escapes and controls, of a line that was
    written over with carriage returns only the last state, and with bidirectional overrides made visible."""
    text = _ESCAPES.sub("", text)
    text = text.replace("\r\n", "\n")
    text = _OVERWRITTEN.sub("", text)
    return text.replace("\r", "").translate(_SHOWN)
