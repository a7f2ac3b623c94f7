"""When an answer shows that a rank is another process than before, and when it shows nothing."""

import pytest

from proxy.config import parse_instance
from proxy.fleet import Instance
from proxy.phases import Role
from proxy.watching.processes import Processes


class Source:
    """Of one rank."""

    state = "exact"

    def __init__(self) -> None:
        self.epoch = 0


class Scene:
    """Answers of one instance, in the order in which they come."""

    def __init__(self, ranks: int) -> None:
        self.sources = [Source() for _ in range(ranks)]
        self.instance = Instance(parse_instance("a:1", Role.PREFILL))
        self.instance.is_followed(dict(enumerate(self.sources)))
        self.processes = Processes()

    def play(self, transcript: str) -> list[str]:
        """`0:x` for an answer of rank 0 from process x, `epoch` for its events telling of another, `down`;
        the news."""
        news = []
        for word in transcript.split():
            rank, _, engine_id = word.partition(":")
            if word == "epoch":
                self.sources[0].epoch += 1
            elif word == "down":
                self.processes.forget(self.instance)
            elif self.processes.replaced(self.instance, int(rank), engine_id):
                news.append(word)
        return news


@pytest.mark.parametrize(
    ("ranks", "transcript", "news"),
    [
        (1, "0:x 0:x 0:x", []),
        (1, "0:x 0:y 0:y", ["0:y"]),
        (1, "0:x 0:y 0:x", ["0:y", "0:x"]),
        (1, "0:x epoch 0:y", []),  # its events told before
        (1, "0:x epoch 0:y 0:z", ["0:z"]),
        (1, "0:x down 0:y", []),  # whoever comes back is verified anyway
        (2, "0:x 1:y 0:x 1:y", []),
        (2, "0:x 1:y 1:z", ["1:z"]),
        (0, "0:x 0:y 0:x", []),  # ranks that were not told of, each a process of its own
    ],
)
def test_another_process_is_news_unless_its_events_said_so(
    ranks: int, transcript: str, news: list[str]
) -> None:
    assert Scene(ranks).play(transcript) == news
