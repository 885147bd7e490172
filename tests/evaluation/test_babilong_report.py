"""Tables of BABILong: what is averaged, what stands beside what, and what is said about it."""

import json

import pytest

from armt_jax.evaluation import babilong_report


def row(label="armt", task="qa1", length=64_000, value=1.0, seed=0, **more):
    scores = {"exact_match": value, "official": value, "repaired": value}
    facts = {"facts_within": None, "samples": 100, "memory": "on", "trained_to": 1024}
    made = {"label": label, "task": task, "length": length, "seed": seed, **scores, **facts, **more}
    return made | {"id": repr(sorted(made.items(), key=str))}


def test_the_report_has_mean_and_deviation_and_published_rows(tmp_path):
    runs = []
    for seed, value in ((0, 0.9), (1, 1.0), (2, 0.8)):
        folder = tmp_path / f"run-{seed}" / "evaluation"
        folder.mkdir(parents=True)
        rows = [row(value=value, seed=seed), row(value=1.0, seed=seed, length=128_000), row(value=0.5, seed=seed, facts_within=16_000)]
        (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        runs.append(str(folder.parent))
    babilong_report.main([*runs, f"--out={tmp_path / 'report'}"])
    text = (tmp_path / "report" / "table.md").read_text()
    assert "| qa1 | **armt** | 90.0 ± 10.0 | 100.0 ± 0.0 |" in text
    assert "| qa1 | **armt, facts in the first 16,000** | 50.0 ± 0.0 |  |" in text
    assert "| qa1 | ARMT (arXiv 2407.04841) | 100.0 ± 0.0 | 99.9 ± 0.2 |" in text and "GPT-4+RAG" in text and "qa2" not in text
    assert (tmp_path / "report" / "heatmap.png").stat().st_size > 5000 and (tmp_path / "report" / "results.png").exists()


def test_published_figures_stand_beside_their_own_kind_alone():
    within = [row(facts_within=16_000)]
    assert [line.ours for line in babilong_report.beside(within)] == [True]
    both = babilong_report.beside([*within, row(length=1000, task="qa2")])
    assert {line.task for line in both if not line.ours} == {"qa2"}


def test_figures_of_different_kinds_are_not_averaged():
    kinds = ({"stories": "files"}, {"stories": "generated"}, {"split": "validation"}, {"question": "apart"}, {"max_facts": 3})
    shown = babilong_report.lines([row(value=i / 10, seed=i, **kind) for i, kind in enumerate(kinds)])
    assert {line.label: line.cells[64_000].mean for line in shown} == {
        "armt": 0.0, "armt, generated stories": 10.0, "armt, validation": 20.0, "armt, question apart": 30.0,
        "armt, at most 3 facts": 40.0,
    }  # fmt: skip
    assert all(line.cells[64_000].runs == 1 for line in shown)


def test_the_table_says_what_its_figures_are(tmp_path):
    babilong_report.write([row(stories="generated"), row(stories="generated", length=500, samples=25)], tmp_path)
    text = (tmp_path / "table.md").read_text()
    for part in ("25 to 100 samples", "run's own tokenizer", "Our stories are generated.", "GPT-2's tokens", "chosen on the test file"):
        assert part in text
    babilong_report.write([row(stories="files", facts_within=16_000)], tmp_path, heading="Of two runs.\n\n")
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("Of two runs.") and "those of the published files." in text and "chosen on the test file" not in text


def test_a_row_that_a_kill_left_twice_counts_once(tmp_path):
    rows = [row(), row(length=500), row()]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert [each["length"] for each in babilong_report.read_run(tmp_path)] == [64_000, 500]


def test_one_run_twice_is_no_deviation():
    with pytest.raises(ValueError, match="two runs"):
        babilong_report.lines([row(), row()])


def test_a_run_without_results(tmp_path):
    with pytest.raises(SystemExit, match="evaluate the run first"):
        babilong_report.main([str(tmp_path), f"--out={tmp_path / 'report'}"])
