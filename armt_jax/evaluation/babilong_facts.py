"""What became of the facts that a question is about, when the text was cut into segments; and how many answers are right for each case.

A memory that has learned its task answers wrongly for few reasons, and they are to be told apart before anything is done about them: a
segment's end cut the fact in two, several facts stood in one segment and had to share its write, or the fact was written and lost later.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from armt_jax.data.babilong import Sample

# Hardest first: a question about several facts is counted where the first of these holds for one of them.
CASES = {
    "in the question's segment": "read with the question, not from memory",
    "cut": "a segment's end stands inside it",
    "with its subject's": "another fact about the same subject stands in its segment",
    "shared": "another fact stands in its segment",
    "alone": "no other fact stands in its segment",
}


def case(sample: Sample, segment_length: int, end: int, question: str) -> str | None:
    """One of CASES, of the facts that support the sample's answer; None where the story names none.

    end: tokens of the context before the question. question: "running" or "apart" (a segment of its own).
    """
    T = segment_length
    begins_F = sample.fact_positions_F
    ends_F = begins_F + np.array([len(ids) for ids in sample.facts_ids]) - 1
    first_F, last_F = begins_F // T, ends_F // T
    subjects = [fact.split()[0] for fact in sample.story.facts]
    asked = (end + len(sample.question_ids) - 1) // T if question == "running" else -1
    found = set()
    for i in sample.story.supports:
        beside = [j for j in range(len(subjects)) if j != i and first_F[j] <= last_F[i] and last_F[j] >= first_F[i]]
        if first_F[i] == asked:
            found.add("in the question's segment")
        elif first_F[i] != last_F[i]:
            found.add("cut")
        elif any(subjects[j] == subjects[i] for j in beside):
            found.add("with its subject's")
        else:
            found.add("shared" if beside else "alone")
    return next((name for name in CASES if name in found), None)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Answers by length and case, as Markdown; of one run's lines in samples.jsonl (those without a case are left out)."""
    lengths = sorted({(line["task"], line["length"]) for line in lines if "case" in line})
    head = ["task", "tokens", *CASES]
    rows = []
    for task, length in lengths:
        here = [line for line in lines if line.get("case") and (line["task"], line["length"]) == (task, length)]
        of = [[line["strict"] for line in here if line["case"] == name] for name in CASES]
        rows.append([task, f"{length:,}", *(f"{sum(right)} of {len(right)}" if right else "" for right in of)])
    rule = ["---", "---:", *["---:"] * len(CASES)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)) + "\n"
