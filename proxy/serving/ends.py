"""What was taken is given back once, the last taken first, whatever fails meanwhile."""

from collections.abc import Callable


class Ends:
    """The ends that are due of what was taken. As `contextlib.ExitStack`, for functions without arguments; a
    request has six of these, and that one costs ten times as much.
    """

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: list[Callable[[], object]] = []

    def add(self, end: Callable[[], object]) -> None:
        """Something was taken, which ends by this."""
        self._due.append(end)

    def close(self) -> None:
        """End all of it. What an end raises is raised once the others were called. A second call does
        nothing.
        """
        due = self._due
        try:
            while due:
                due.pop()()
        finally:
            if due:
                self.close()

    def passed_on(self) -> "Ends":
        """Another that has all that this one had."""
        other = Ends()
        other._due, self._due = self._due, []
        return other
