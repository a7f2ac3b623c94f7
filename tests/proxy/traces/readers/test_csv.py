"""The CSV files of Azure and of BurstGPT, with rows as they are published."""

import pathlib

import pytest

from proxy.errors import TraceError
from proxy.traces.readers import ReadingOptions, read

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:46.6805900,20000,0
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00+00:00,7,1
"""
AZURE_2025 = """TIMESTAMP,NumImages,ContextTokens,GeneratedTokens
2024-10-15 00:00:00.0000000,2,900,120
"""
BURSTGPT_1 = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
120,GPT-4,300,0,300,API log
"""
BURSTGPT_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log
19440130.0,,3,GPT-4,10,10,20,API log
19440161.0,1722ac82,9,ChatGPT,36,29,65,Conversation log
19440162.0,1722ac82,2,ChatGPT,36,29,65,Conversation log
"""


def file(tmp_path: pathlib.Path, content: str) -> pathlib.Path:
    path = tmp_path / "a.csv"
    path.write_text(content)
    return path


def test_azures_of_2023(tmp_path: pathlib.Path) -> None:
    found = read(file(tmp_path, AZURE_2023))
    assert [each.at_s for each in found.requests] == [0.0, pytest.approx(4.314579, abs=1e-6)]
    assert [(each.input_tokens, each.output_tokens) for each in found.requests] == [(374, 44), (396, 109)]
    assert "1 left out without a prompt or an answer" in found.source


def test_azures_of_2024_have_a_zone_and_need_no_order(tmp_path: pathlib.Path) -> None:
    found = read(file(tmp_path, AZURE_2024))
    assert [each.at_s for each in found.requests] == [0.0, pytest.approx(0.00993, abs=1e-6)]
    assert [each.input_tokens for each in found.requests] == [7, 2162]


def test_azures_with_images_has_a_column_more(tmp_path: pathlib.Path) -> None:
    (found,) = read(file(tmp_path, AZURE_2025)).requests
    assert (found.input_tokens, found.output_tokens) == (900, 120)


def test_what_a_file_does_not_tell_is_unshared_and_said(tmp_path: pathlib.Path) -> None:
    for content in (AZURE_2024, BURSTGPT_1):
        found = read(file(tmp_path, content), ReadingOptions(block_tokens=16))
        blocks = [block for each in found.requests for block in each.blocks]
        assert len(blocks) == len({*blocks}) == sum(-(-each.input_tokens // 16) for each in found.requests)
        assert "no prompt shares a block" in found.source


def test_the_first_release_of_burstgpt(tmp_path: pathlib.Path) -> None:
    found = read(file(tmp_path, BURSTGPT_1))
    assert [each.at_s for each in found.requests] == [0.0, 40.0, 113.0]
    assert [each.model for each in found.requests] == ["ChatGPT", "ChatGPT", "GPT-4"]
    assert {each.session for each in found.requests} == {None}
    assert "1 left out that failed" in found.source


def test_the_second_release_of_burstgpt_has_sessions(tmp_path: pathlib.Path) -> None:
    path = file(tmp_path, BURSTGPT_3)
    by_clock = read(path)
    assert [each.at_s for each in by_clock.requests] == [0.0, 20.0, 51.0, 52.0]
    assert [each.session for each in by_clock.requests] == ["1722ac82", None, "1722ac82", "1722ac82"]
    loop = read(path, ReadingOptions(closed=True))
    assert [(each.at_s, each.after, each.think_s) for each in loop.requests] == [
        (0.0, None, 0.0),
        (0.0, 0, 8.0),
        (0.0, 0, 9.0),  # the one before had not ended
        (20.0, None, 0.0),
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("2023-11-16,1", "2 cells, but the header names 3"),
        ("yesterday,1,1", "TIMESTAMP: expected a time such as 2023-11-16 18:15:46.68, got 'yesterday'"),
        ("2023-11-16,x,1", "ContextTokens: expected a whole number, got 'x'"),
        ("2023-11-16,1,-4", "GeneratedTokens: expected 0 to 16777216, got -4"),
        ('2023-11-16,"1,1', "not CSV"),
    ],
)
def test_a_broken_row_is_named_with_its_column(row: str, why: str, tmp_path: pathlib.Path) -> None:
    path = file(tmp_path, f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,1,1\n{row}\n")
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 3: {why}")


@pytest.mark.parametrize("time", ["", "x", "nan", "-1", "inf"])
def test_a_broken_time_of_burstgpt_is_named(time: str, tmp_path: pathlib.Path) -> None:
    path = file(tmp_path, f"Timestamp,Model,Request tokens,Response tokens\n{time},m,1,1\n")
    with pytest.raises(TraceError, match=f"line 2: Timestamp: expected seconds, got '{time}'"):
        read(path)
