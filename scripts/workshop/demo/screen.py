"""Everything the demo shows: coloured on a terminal, plain text when piped."""

import dataclasses
import io
import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 118
_SHOWN_WORDS = 70


@dataclasses.dataclass(frozen=True)
class Turn:
    """One answered turn and what was said about its cached tokens."""

    who: str
    number: int
    prompt_tokens: int
    prefill: str
    decode: str
    predicted: int | None
    reported: int
    round_robin: int

    @property
    def as_predicted(self) -> bool:
        return self.predicted == self.reported


class Screen:
    """Lines of different kinds."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # the tiny model says anything
        width = None if self._terminal else _PIPED_WIDTH
        self._console = Console(highlight=False, width=width, soft_wrap=True)

    def title(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold", markup=False)

    def note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def asked(self, who: str, number: int, text: str, *, stream: bool) -> None:
        way = ", streamed" if stream else ""
        self._console.print()
        self._console.print(
            Text.assemble((f"{who}, turn {number}{way}: ", "bold cyan"), _short(text)), style="cyan"
        )

    def whole(self, engine: str) -> None:
        """Show that one engine serves the whole request."""
        self._console.print(Text(f"  prefill  none: {engine} computes what it lacks itself", style="yellow"))

    def decision(self, role: str, costs: dict[str, float | None], cached: dict[str, int | None]) -> None:
        """Show every candidate's cached tokens, those with the lowest cost marked; None is no cost."""
        line = Text(f"  {role:8}", style="yellow")
        lowest = min((cost for cost in costs.values() if cost is not None), default=None)
        for name, cost in costs.items():
            best = cost is not None and cost == lowest
            known = "unknown" if cached[name] is None else f"{cached[name]} cached"
            known += "" if cost is None else f", cost {cost:.1f}"
            line.append(
                f"{'>' if best else ' '}{name}: {known}  ", style="bold yellow" if best else "dim yellow"
            )
        if lowest is not None and list(costs.values()).count(lowest) > 1:
            line.append("(a tie: one at random)", style="dim yellow")
        self._console.print(line)

    def event(self, engine: str, text: str) -> None:
        self._console.print(Text(f"  event   {engine:10} {text}", style="green"))

    def answer(self, turn: Turn, text: str, chunks: int) -> None:
        arrived = f" in {chunks} chunks" if chunks else ""
        self._console.print(Text(f"  answer  {_short(text)!r}{arrived}", style="white"))
        style = "bold green" if turn.as_predicted else "bold red"
        told = f"predicted {turn.predicted}, reported {turn.reported} of {turn.prompt_tokens} prompt tokens"
        self._console.print(Text(f"  cached  {told}, by {turn.prefill} and {turn.decode}", style=style))

    def failure(self, text: str) -> None:
        self._console.print(Text(text, style="bold red"))

    def table(self, turns: list[Turn]) -> None:
        shape = box.SIMPLE_HEAD if self._terminal else box.ASCII
        table = Table(title="prompt tokens taken from a cache", title_justify="left", box=shape)
        table.add_column("turn")
        for heading in ("prefill", "decode"):
            table.add_column(heading)
        for heading in ("prompt", "predicted", "reported", "round robin"):
            table.add_column(heading, justify="right")
        for turn in turns:
            table.add_row(
                f"{turn.who} {turn.number}",
                turn.prefill,
                turn.decode,
                str(turn.prompt_tokens),
                str(turn.predicted),
                str(turn.reported),
                str(turn.round_robin),
                style=None if turn.as_predicted else "bold red",
            )
        prompt = sum(turn.prompt_tokens for turn in turns)
        reported = sum(turn.reported for turn in turns)
        alternative = sum(turn.round_robin for turn in turns)
        table.add_section()
        table.add_row(
            "all",
            "",
            "",
            str(prompt),
            str(sum(turn.predicted or 0 for turn in turns)),
            f"{reported} ({_percent(reported, prompt)})",
            f"{alternative} ({_percent(alternative, prompt)})",
            style="bold",
        )
        self._console.print()
        self._console.print(table)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_WORDS else f"{line[:_SHOWN_WORDS]}..."
