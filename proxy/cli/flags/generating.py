"""Flags are made of the declarations of settings; only what is no setting is written by hand, in
`commands`.
"""

import argparse
from collections.abc import Callable, Iterable

import msgspec

from proxy.config.settings import Declared


def add_groups(parser: argparse.ArgumentParser, settings: Iterable[Declared]) -> None:
    """Add a flag for each of `settings`, under its heading."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for declared in settings:
        if declared.setting.flag:
            if declared.group not in groups:
                groups[declared.group] = parser.add_argument_group(declared.group)
            add_flag(groups[declared.group], declared)


def add_flag(group: "argparse._ActionsContainer", declared: Declared) -> None:
    """Add one flag. Its words are kept as they were written; it is in the namespace only if it was given."""
    setting = declared.setting
    names = [name for name in (setting.short, setting.flag) if name]
    text = setting.help
    switch = declared.kind is bool and not declared.choices
    if declared.default is not msgspec.NODEFAULT and not switch and (default := declared.default_text()):
        text += f" (default: {default})"
    text = text.replace("%", "%%")
    if declared.choices:
        group.add_argument(
            *names, dest=declared.key, default=argparse.SUPPRESS, choices=list(declared.choices), help=text
        )
    elif switch:
        group.add_argument(
            *names,
            dest=declared.key,
            default=argparse.SUPPRESS,
            action=argparse.BooleanOptionalAction,
            help=text,
        )
    elif declared.many:
        group.add_argument(
            *names,
            dest=declared.key,
            default=argparse.SUPPRESS,
            nargs="+",
            action="extend",
            metavar=setting.unit,
            help=text,
        )
    else:
        group.add_argument(
            *names,
            dest=declared.key,
            default=argparse.SUPPRESS,
            type=_checked(declared),
            metavar=setting.unit,
            help=text,
        )


def _checked(declared: Declared) -> Callable[[str], str]:
    """Returns a word as it is, if it can be read; whether the value is allowed, the configuration checks."""

    def checked(text: str) -> str:
        try:
            declared.read_word(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return checked
