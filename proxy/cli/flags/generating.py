"""Flags are made of the declarations of settings; only what is no setting is written out, in `commands`."""

import argparse
from collections.abc import Callable, Iterable

import msgspec

from proxy.config.settings import Declared


def add_groups(parser: argparse.ArgumentParser, settings: Iterable[Declared]) -> None:
    """A flag for each of `settings`, under the headings they name."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for declared in settings:
        if declared.setting.flag:
            if declared.group not in groups:
                groups[declared.group] = parser.add_argument_group(declared.group)
            add_flag(groups[declared.group], declared)


def add_flag(group: "argparse._ActionsContainer", declared: Declared) -> None:
    """One flag. What follows it is kept as it was written; it is not in the namespace unless it was given."""
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
    """A word as it is, if it can be read at all; which values are allowed the configuration checks."""

    def checked(text: str) -> str:
        try:
            declared.read_word(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return checked
