"""What tyro says in a box of many lines, in one: the option, the value and what is valid."""

from __future__ import annotations

import re

_KINDS = {"INT": "whole number", "FLOAT": "number", "PATH": "path", "STR": "text"}


def one_line(box: str) -> str:
    """The message of one of tyro's boxes; what is of no known form is flattened as it is."""
    sections = _sections(box)
    body = " ".join(" ".join(sections[0]).split())
    if found := re.match(r"invalid choice (.*) for argument '(.*?)'\. Expected one of \((.*?),?\)\.$", body):
        value, option, valid = found.groups()
        return f"{option} must be one of {valid.replace(chr(39), '')}, got {value}"
    if found := re.match(r"Missing value for argument '(.*?)'\. Expected (\d+) values", body):
        option, count = found.groups()
        return f"{option} needs {'a value' if count == '1' else f'{count} values'}"
    if found := re.match(r"Error parsing (\S+): (.*)", body):
        return _unparsed(found[1], found[2], sections)
    if found := re.match(r"Expected one of \{(.*)\}", body):
        return f"one of {found[1]} must be named"
    told = [_missing(lines) or _unknown(lines, sections) for lines in sections if lines]
    return "; ".join(filter(None, told)) or re.sub(r"\[/?\w+\]", "", body)


def _sections(box: str) -> list[list[str]]:
    """The box's lines without its frame, divided at its rules."""
    lines = [line.strip("│").removeprefix(" ").rstrip() for line in box.splitlines() if not re.match("[╭╰]", line)]
    sections: list[list[str]] = [[]]
    for line in lines:
        if line and not line.strip("─ "):
            sections.append([])
        elif line:
            sections[-1].append(line)
    return sections


def _unparsed(option: str, why: str, sections: list[list[str]]) -> str:
    """Of a value that its option cannot take, or of whatever a configuration said about several."""
    if not option.startswith("--"):
        return why
    helped = next((line.split() for part in sections[1:] for line in part if line.split()[0] == option), [])
    given = re.search(r"\[(.*?)\]", why) or re.search(r"('[^']*')$", why)
    if not helped[1:] or not given:
        return f"{option}: {why}"
    return f"{option} needs {_kind(' '.join(helped[1:]))}, got {given[1]}"


def _kind(metavar: str) -> str:
    """In words what an option takes: FLOAT is a number, {None}|INT a whole number or None."""
    plain = metavar.removeprefix("{None}|").strip("{}")
    names = re.findall(r"\w+", plain)
    if not names or set(names) - {names[0]} or names[0] not in _KINDS:
        return metavar
    kind = _KINDS[names[0]]
    several = f"{kind}s" if plain.startswith("[") else f"{len(names)} {kind}s"
    one = kind if kind == "text" else f"a {kind}"
    return (one if plain in _KINDS else several) + (" or None" if plain != metavar else "")


def _missing(lines: list[str]) -> str:
    if not lines[0].startswith("Missing from"):
        return ""
    needed = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r" {4}\S", line):  # a positional argument has no name: what it is stands in its help
            needed.append(line.strip() if "--" in line else following.strip().removesuffix("(required)").strip(" ."))
    return f"missing: {', '.join(needed)}"


def _unknown(lines: list[str], sections: list[list[str]]) -> str:
    """Of options that there are not, or of words that belong to none, with what is like them."""
    head, _, inline = lines[0].partition(":")
    if not head.startswith("Unrecognized"):
        return ""
    listed = [line.partition(" (applied to")[0] for line in lines[1:] if line.startswith("  ")]
    given = [word.strip() for line in (inline, *listed) for word in line.split(", ") if word.strip()]
    options = [word for word in given if word.startswith("-")] if given[0].startswith("-") else given[:1]
    for part in sections:
        if part[0].startswith("Available subcommands: "):
            return f"unknown argument {given[0]}; valid: {part[0].removeprefix('Available subcommands: ')}"
    alike = [part for part in sections if part[0].startswith(("Perhaps you meant", "Arguments similar"))]
    near = [line.split()[0].rstrip(",") for part in alike for line in part if re.match(r" {4}--", line)]
    perhaps = f"; perhaps {' or '.join(dict.fromkeys(near))}" if near and options[0].startswith("-") else ""
    return f"unknown {'option' if options[0].startswith('-') else 'argument'} {', '.join(options)}{perhaps}"
