"""docs/settings.md, docs/metrics.md and docs/routes.md are made of declarations; a test holds them to these.

python -m proxy.cli.reference docs/settings.md docs/metrics.md docs/routes.md            # write them
python -m proxy.cli.reference --check docs/settings.md docs/metrics.md docs/routes.md    # exit code 1 if one would change
"""

import argparse
import dataclasses
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from proxy.cli import routes_page
from proxy.cli.flags.commands import SETTINGS, settings_of_sources
from proxy.config.settings import COUNT, MIB, SECONDS, Declared, limits_text
from proxy.observability import reference as metrics
from proxy.observability.metrics import GROUPS
from proxy.watching.membership.registry import registered

_HEAD = """\
# Settings

<!-- Made by `python -m proxy.cli.reference docs/settings.md` of what proxy/config declares: change it there. -->

Each setting has one name. `--queue-timeout 30` on the command line, `KVPROXY_QUEUE_TIMEOUT=30` in the environment and
`queue-timeout = 30` in a TOML file say the same. The command line wins over the environment, the environment over the file,
and all of them over the default. They are not mixed within a setting: `--prefill` replaces every prefill engine of the file,
and no decode engine. What is wrong is said with the name of the flag, and with the place where it was set unless that is the
command line.

```
kvproxy serve --config kvproxy.toml      # or KVPROXY_CONFIG=kvproxy.toml
```

```toml
model = "llama"
prefill = ["gpu1:8100", "gpu2:8100"]
decode = ["gpu3:8200", "https://gpu4:8200"]
queue-timeout = 10
tier-cost = {CPU = 0.2, STORAGE = 0.5}
decision-headers = true
```

- A setting of several words is an array in the file; in the environment spaces stand between its words, or it is a JSON array.
- What is on or off is `true` or `false` in the file, `true`, `yes`, `on`, `1` or `false`, `no`, `off`, `0` in the
  environment, and `--decision-headers` or `--no-decision-headers` on the command line.
- An environment name that is set to nothing counts as not set. So do `KVPROXY_PORT` and `KVPROXY_ADMIN_PORT` where they begin
  with `tcp://` or the like: Kubernetes sets them so beside a service called `kvproxy`.
- A key that is no setting is an error. An environment name that begins with `KVPROXY_` and is none of these, nor one that
  Kubernetes sets beside such a service, is not looked at: the log says so once at the start, with the closest setting.
- A package that is installed beside kvproxy may bring [sources of instances](architecture.md#a-source-of-instances) with settings
  of their own. They are told in the same ways, and are listed by `kvproxy serve --help`.
- Paths are relative to the directory in which kvproxy was started, wherever they are written.
{doctor}
"""

_WARM = """\
Settings marked *warm* are looked up each time they are used; all others are cold, read once when kvproxy starts. Nothing is
read anew while kvproxy runs yet: a change of either kind takes a restart.
"""


def page(settings: Sequence[Declared]) -> str:
    """The whole reference, in Markdown."""
    doctor = ", ".join(f"`{declared.setting.flag}`" for declared in settings if declared.setting.doctor)
    of_doctor = f"- `kvproxy doctor` reads the same file and environment. Of the flags it has {doctor}."
    of_doctor = textwrap.fill(of_doctor, 118, subsequent_indent="  ", break_on_hyphens=False)
    parts = [_HEAD.replace("{doctor}", of_doctor)]
    if any(declared.setting.reloadable for declared in settings):
        parts.append(_WARM)
    for group in dict.fromkeys(declared.group for declared in settings):
        parts.append(f"## {group.capitalize()}\n")
        parts.append(table(declared for declared in settings if declared.group == group))
    return "\n".join(parts)


def table(settings: Iterable[Declared]) -> str:
    """A line for each of `settings`."""
    head = [
        "| flag, and key in a file | value | default | environment | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *map(line, settings)]) + "\n"


def line(declared: Declared) -> str:
    """The line of one setting in its table."""
    setting = declared.setting
    flags = ", ".join(f"`{name}`" for name in (setting.short, setting.flag) if name)
    default = "" if declared.default is msgspec.NODEFAULT else declared.default_text()
    meaning = " ".join(
        filter(None, (f"{setting.help}.", setting.more, "*Warm.*" if setting.reloadable else ""))
    )
    cells = (flags or "none: a secret", _value(declared), default, f"`{declared.environment}`", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(declared: Declared) -> str:
    """The kind of value after the flag, and its limits."""
    setting = declared.setting
    if declared.choices:
        return ", ".join(f"`{choice}`" for choice in declared.choices)
    if declared.kind is bool:
        return "on or off"
    unit = {SECONDS: "seconds", COUNT: "number", MIB: "MiB"}.get(setting.unit, f"`{setting.unit}`")
    limits = limits_text(dataclasses.replace(setting, unit=""))
    return ", ".join(filter(None, (unit + (" ..." if declared.many else ""), limits)))


def _settings() -> str:
    of_sources = settings_of_sources(registered()).values()
    return page([*SETTINGS, *(declared for settings in of_sources for declared in settings)])


def _metrics() -> str:
    return metrics.page(GROUPS)


PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": _settings,
    "metrics.md": _metrics,
    "routes.md": routes_page.page,
}
"""What makes each page, by the name of its file."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pages, or (`--check`) compare them with what would be written."""
    parser = argparse.ArgumentParser(prog="python -m proxy.cli.reference", description="Make pages of docs/.")
    parser.add_argument("--check", action="store_true", help="exit with code 1 if a page is another")
    parser.add_argument("pages", type=pathlib.Path, nargs="+", metavar="page")
    args = parser.parse_args(argv)
    for path in args.pages:
        if path.name not in PAGES:
            parser.error(f"{path} is none of {', '.join(PAGES)}")
        made = PAGES[path.name]()
        if not args.check:
            path.write_text(made, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != made:
            sys.exit(f"{path} is not what is declared: run python -m proxy.cli.reference {path}")


if __name__ == "__main__":
    main()
