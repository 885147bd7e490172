"""Which checkpoints of a run stay: a rule on steps and ranks alone. `checkpoint.py` applies it."""


def best_step(ranks: dict[int, float | None]) -> int | None:
    """The step with the highest rank, the earliest of several; None when nothing is ranked."""
    ranked = [step for step, rank in ranks.items() if rank is not None]
    return max(ranked, key=lambda step: (ranks[step], -step), default=None)


def steps_to_keep(
    steps: list[int], ranks: dict[int, float | None], damaged: set[int], saving: int, keep_last: int
) -> set[int]:
    """The newest keep_last, the best, and the one being saved (older than others, if the run went back to an old step).

    A damaged one takes nobody's place, and goes when the sound ones have left it behind. One that is not in ranks,
    because reading its record failed just now, stays.
    """
    sound = {step: rank for step, rank in ranks.items() if step not in damaged}
    newest = sorted(sound)[-keep_last:]
    lost = {step for step in damaged if step < newest[0]}
    best = best_step(sound)
    return {saving, *newest, *(set(steps) - set(sound) - lost), *([] if best is None else [best])}
