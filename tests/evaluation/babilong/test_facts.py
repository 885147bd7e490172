"""What became of a question's facts, told apart by hand; and the table of an evaluation against its answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from armt_jax.evaluation import babilong_facts
from armt_jax.evaluation import sweep as sweeps
from armt_jax.telemetry.jsonl import read_lines

T = 32
MARY, JOHN, AGAIN = "Mary moved to the office.", "John went to the garden.", "Mary went to the kitchen."


def sample(places, facts, supports=(-1,), asked=5, length=6):
    story = SimpleNamespace(facts=tuple(facts), supports=tuple(i % len(facts) for i in supports))
    ids = tuple(np.zeros(length, np.int32) for _ in facts)
    return SimpleNamespace(story=story, fact_positions_F=np.array(places), facts_ids=ids, question_ids=np.zeros(asked, np.int32))


@pytest.mark.parametrize(
    "places, facts, end, want",
    [
        ((0, 40), (MARY, JOHN), 200, "alone"),
        ((0, 26), (MARY, JOHN), 200, "shared"),  # its last token is the segment's
        ((0, 27), (MARY, JOHN), 200, "cut"),
        ((27, 40), (MARY, JOHN), 200, "shared"),  # with the end of one that is cut
        ((26, 40), (MARY, JOHN), 200, "alone"),
        ((0, 26), (MARY, AGAIN), 200, "with its subject's"),
        ((0, 10, 20), (MARY, AGAIN, JOHN), 200, "shared"),
        ((0, 40), (MARY, JOHN), 59, "in the question's segment"),
        ((0, 40), (MARY, JOHN), 60, "alone"),  # the question ends in the next one
    ],
)
def test_cases(places, facts, end, want):
    assert babilong_facts.case(sample(places, facts), T, end, "running") == want
    if want == "in the question's segment":
        assert babilong_facts.case(sample(places, facts), T, end, "apart") == "alone"


def test_of_several_facts_the_hardest_case_counts():
    two = sample((0, 26, 70), (MARY, JOHN, AGAIN), supports=(0, 2))
    assert babilong_facts.case(two, T, 200, "running") == "shared"
    two.fact_positions_F[2] = 92
    assert babilong_facts.case(two, T, 200, "running") == "cut"


def test_an_evaluation_says_where_answers_go_wrong(trained, tmp_path):
    (row,) = sweeps.run_sweep(trained, [{"evaluation.samples": 12, "evaluation.lengths": 300}], tmp_path)
    lines, table = read_lines(tmp_path / "samples.jsonl"), (tmp_path / "facts.md").read_text()
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert cells[:2] == ["qa1", "300"] and all(f"- {name}: " in table for name in babilong_facts.CASES)
    right = total = 0
    for name, cell in zip(babilong_facts.CASES, cells[2:], strict=True):
        of = [line["strict"] for line in lines if line["case"] == name]
        assert cell == (f"{sum(of)} of {len(of)}" if of else "")
        right, total = right + sum(of), total + len(of)
    assert total == 12 and right == round(row["exact_match"] * 12) and len({line["case"] for line in lines}) > 1


def test_a_story_that_names_no_facts_has_no_case():
    assert babilong_facts.case(sample((0, 40), (MARY, JOHN), supports=()), T, 200, "running") is None
    assert babilong_facts.table([{"task": "qa1", "length": 9, "case": None, "strict": True}]).splitlines()[-1].count("|  |") > 0
