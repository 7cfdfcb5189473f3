import os
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from edl_jax.studies.results import Column, StudyResults, Table
from edl_jax.studies.screen import on_screen

RUN = Path("runs/one")
COLUMNS = [
    Column("loss", lambda row: row["loss"], is_number=False),
    *(Column(f"a long heading {i}, %", lambda row, i=i: f"{row['x'] + i:.2f}") for i in range(9)),
]


def results(num_rows: int, num_sentences: int) -> StudyResults:
    rows = [{"loss": f"loss_{i}", "x": i} for i in range(num_rows)]
    finding = " ".join(f"Sentence {i} says what the study found." for i in range(num_sentences))
    protocol = [f"Rule {i} of how it was done." for i in range(3)]
    tables = [Table("t", "T", rows, COLUMNS), Table("u", "Choices", rows[:1], COLUMNS[:1])]
    return StudyResults("toy", "Toy", finding, protocol, tables, [])


@given(
    num_rows=st.integers(1, 60),
    num_sentences=st.integers(1, 80),
    columns=st.integers(60, 200),
    lines=st.integers(1, 60),
)
def test_fits_any_terminal_and_says_what_matters(num_rows, num_sentences, columns, lines):
    text = on_screen(results(num_rows, num_sentences), RUN, os.terminal_size((columns, lines)))
    shown = text.split("\n")
    assert len(shown) < max(lines, 20)  # the prompt is below it
    assert max(map(len, shown)) <= columns
    assert "loss_0" in text
    assert "Sentence 0 says" in text
    assert text.replace("\n", " ").count(f"Sentence {num_sentences - 1} says what") == 1
    assert shown[-1] == f"Tables, figures and protocol: {RUN / 'README.md'}"
    rows = [line for line in shown if line.startswith("loss_")]
    more = [line for line in shown if line.startswith("... and")]
    left_out = f"... and {num_rows - len(rows)} more rows"
    assert more == ([left_out] if len(rows) < num_rows else [])


def test_columns_are_set_as_in_a_table():
    table, *_ = on_screen(results(2, 1), RUN, os.terminal_size((36, 40))).split("\n\n")
    assert table.split("\n") == [
        "         a long   a long   a long",
        "        heading  heading  heading",
        "loss       0, %     1, %     2, %",
        "------  -------  -------  -------",
        "loss_0     0.00     1.00     2.00",
        "loss_1     1.00     2.00     3.00",
    ]


def test_long_names_are_cut_and_leave_room_for_numbers():
    found = results(2, 1)
    for row, name in zip(found.tables[0].rows, ("a" * 99 + "/one", "a" * 99 + "/two"), strict=True):
        row["loss"] = name
    table, *_ = on_screen(found, RUN, os.terminal_size((80, 24))).split("\n\n")
    one, two = table.split("\n")[-2:]
    assert one.startswith("...aaa")
    assert "/one     0.00     1.00" in one
    assert "/two     1.00     2.00" in two
    assert max(map(len, table.split("\n"))) <= 80


@pytest.mark.parametrize("num_rows", [1, 60])
def test_a_file_gets_all_of_it(num_rows):
    found = results(num_rows, 80)
    text = on_screen(found, RUN, None)
    first, second = text.split("\nT:\n")[1].split("\nChoices:\n")
    assert first.count("\nloss_") == num_rows
    assert second.count("\nloss_0") == 1
    assert " ".join(text.split()).count(found.finding) == 1
    for sentence in found.protocol:
        assert f"- {sentence}\n" in text
    assert "8.00" in text  # the last column
