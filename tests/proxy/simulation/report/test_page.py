"""A report is one page that needs nothing else and has every figure, and its size is bounded."""

import html.parser
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import msgspec
import pytest

from proxy.simulation.replay.comparison import COLUMNS, Cell, Comparison, cells_of
from proxy.simulation.replay.figures import MOST_MOMENTS, Figures, Moment, OfInstance
from proxy.simulation.replay.run import Outage, Setup
from proxy.simulation.report.charts import BY_LOAD, BY_POLICY, looks_of
from proxy.simulation.report.over_time import MOST_INSTANCES, MOST_PANELS, MOST_POLICIES
from proxy.simulation.report.page import MOST_SPEEDS, page_of
from tests.proxy.simulation.replay.workloads import conversations

VOID = {"meta", "link", "br", "img", "input", "hr"}
DRAWN_BY_POLICY, DRAWN_BY_LOAD = len(BY_POLICY), len(BY_LOAD)


class Page(html.parser.HTMLParser):
    """What a page has, all of whose elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.captions: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1].append(data)
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data)
        self.texts.append(data)


@pytest.fixture(scope="module")
def figures() -> Figures:
    (cell,) = cells_of(conversations(30), [Setup(fleet="2b", policy="round_robin")])
    return cell.figures


def comparison(cells: Sequence[Cell], setup: Setup | None = None, workload: str = "chats") -> Comparison:
    return Comparison(workload, "made up", setup or Setup(), cells, len(cells))


def cells(
    figures: Figures,
    *,
    fleets: Sequence[str] = ("2b",),
    policies: Sequence[str] = ("dynamo", "random"),
    speeds: Sequence[float] = (1.0,),
) -> list[Cell]:
    return [
        Cell(fleet, policy, speed, figures, 0.5)
        for fleet in fleets
        for speed in speeds
        for policy in policies
    ]


def drawings(text: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


@pytest.mark.parametrize("speeds", [(1.0,), (1.0, 2.0), (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)])
@pytest.mark.parametrize("policies", [("dynamo",), ("dynamo", "random")])
def test_every_figure_of_the_table_is_on_the_page(
    figures: Figures, policies: Sequence[str], speeds: Sequence[float]
) -> None:
    made = cells(figures, fleets=("2b", "4b"), policies=policies, speeds=speeds)
    text = page_of(comparison(made))
    head, *rows = Page(text).rows
    assert head == [column.whole_name for column in COLUMNS]
    assert rows == [[column.shown(cell) for column in COLUMNS] for cell in made]
    assert len(set(head)) == len(head)
    assert drawings(text)


def test_several_speeds_are_curves_and_one_is_bars(figures: Figures) -> None:
    many = drawings(page_of(comparison(cells(figures, speeds=(1.0, 2.0, 3.0)))))
    lines = [line for svg in many for line in svg.iter("polyline")]
    assert len(lines) == DRAWN_BY_LOAD * 2
    assert all(len(line.attrib["points"].split()) == 3 for line in lines)
    one = drawings(page_of(comparison(cells(figures))))
    assert not [line for svg in one for line in svg.iter("polyline")]
    filled = [rect for svg in one for rect in svg.iter("rect") if rect.attrib["class"] == "fill"]
    assert len(filled) == (DRAWN_BY_LOAD + DRAWN_BY_POLICY) * 2


def test_bars_are_drawn_of_a_few_speeds(figures: Figures) -> None:
    page = Page(page_of(comparison(cells(figures, speeds=[float(speed) for speed in range(1, 20)]))))
    assert page.captions.count("Reuse") == MOST_SPEEDS


def test_nothing_is_fetched_and_nothing_runs(figures: Figures) -> None:
    page = Page(page_of(comparison(cells(figures, speeds=(1.0, 2.0)))))
    assert not page.tags & {"script", "link", "img", "iframe", "object", "use", "image"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "xlink:href", "style"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]


BAD = "<script>alert('1')</script>&\"x"


def test_names_are_shown_and_not_obeyed(figures: Figures) -> None:
    instances = {BAD: figures.instances["b0:1"]}
    odd = msgspec.structs.replace(figures, instances=instances)
    made = cells(odd, fleets=(BAD,), policies=(BAD,), speeds=(1.0, 2.0))
    setup = Setup(profile=BAD, speeds={BAD: 0.5}, outages=[Outage(BAD, 1.0, 2.0)])
    text = page_of(Comparison(BAD, BAD, setup, made, len(made)))
    page = Page(text)
    assert "script" not in page.tags
    assert page.rows[1][2] == BAD
    assert BAD in page.captions
    assert all(svg.tag == "svg" for svg in drawings(text))
    assert page_of(comparison(cells(odd, policies=(BAD,)))).count("<script") == 0


def test_what_was_run_is_told(figures: Figures) -> None:
    setup = Setup(
        seed=71, profile="dynamo-replay", speeds={"b1:1": 0.5}, outages=[Outage("b0:1", 60.0, 30.0)]
    )
    told = " ".join(Page(page_of(comparison(cells(figures, speeds=(1.0, 2.5)), setup))).texts)
    for words in ("chats: 30 requests, made up", "dynamo, random", "1, 2.5", "71", "dynamo-replay"):
        assert words in told
    for words in ("2000 ms", "50 ms", "b1 0.5 times as fast", "b0 gone at 60 s for 30 s"):
        assert words in told


def busy(instances: int) -> dict[str, OfInstance]:
    moments = [
        Moment(at_s=30.0 * n, prefill_use=0.123 * (n % 8), decode_use=0.456, running=1, waiting=0, usage=0.5)
        for n in range(MOST_MOMENTS)
    ]
    return {f"b{n}:1": OfInstance(1, 0.1, 0.2, 1, 1, 1, 0, moments) for n in range(instances)}


def test_a_page_is_bounded_however_much_was_run(figures: Figures) -> None:
    large = msgspec.structs.replace(figures, instances=busy(64))
    names = [f"policy_{number}" for number in range(10)]
    made = cells(large, fleets=("64b", "32p32d"), policies=names, speeds=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    text = page_of(comparison(made))
    page = Page(text)
    assert sum(bool(re.fullmatch(r"b\d+", caption)) for caption in page.captions) <= MOST_PANELS
    assert f"{64 - MOST_INSTANCES} more instances are not drawn." in page.texts
    assert "108 of 120 runs are not drawn over time; figures.json has all of them." in page.texts
    assert len(text) < 1_500_000


def test_the_first_policies_are_drawn_over_time(figures: Figures) -> None:
    page = Page(page_of(comparison(cells(figures, policies=("a", "b", "c", "d")))))
    assert [name in page.texts for name in ("a at speed 1", "c at speed 1", "d at speed 1")] == [
        True,
        True,
        False,
    ]
    assert page.captions.count("b0") == MOST_POLICIES


def test_a_run_in_which_nothing_happened_has_a_page(figures: Figures) -> None:
    idle = {name: msgspec.structs.replace(each, over_time=[]) for name, each in figures.instances.items()}
    nothing = msgspec.structs.replace(figures, instances=idle, served=0, requests=0, good=0.0, good_per_s=0.0)
    for speeds in ((1.0,), (1.0, 2.0)):
        text = page_of(comparison(cells(nothing, speeds=speeds)))
        assert "What each instance did over time" not in Page(text).texts
        assert drawings(text)
    partly = {**idle, "b0:1": figures.instances["b0:1"]}
    half = msgspec.structs.replace(figures, instances=partly)
    assert Page(page_of(comparison(cells(half, policies=("a",))))).captions[-2:] == ["b0", "b1"]


def test_the_areas_of_an_instance_are_its_shares(figures: Figures) -> None:
    moments = [Moment(0.0, 0.5, 0.25, 1, 0, 0.1), Moment(5.0, 1.5, 0.0, 1, 0, 0.1)]
    made = msgspec.structs.replace(figures, instances={"b0:1": OfInstance(1, 0.5, 0.2, 1, 1, 1, 0, moments)})
    (svg,) = [
        svg
        for svg in drawings(page_of(comparison(cells(made, policies=("a",)))))
        if svg.find("path[@class='decode']") is not None
    ]
    found = {path.attrib["class"]: path.attrib["d"] for path in svg.iter("path")}
    assert found["prefill"] == "M26 64V36H100V8H174V64z"
    assert found["decode"] == "M26 64V22H100V8H174V64z"


def test_policies_look_different() -> None:
    looks = looks_of([f"policy_{number}" for number in range(280)])
    assert len({(look.colour, look.marker, look.dash) for look in looks.values()}) == 280


def test_the_same_figures_give_the_same_page(figures: Figures) -> None:
    made = comparison(cells(figures, speeds=(1.0, 2.0)))
    assert page_of(made) == page_of(made)
