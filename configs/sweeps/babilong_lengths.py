"""BABILong from 1,000 to 262,144 tokens, a pass for each length: 100 samples, 25 at the longest three.

Lengths are the published ones, and two more: the 1,024 tokens to which configs/babilong_qa1_cpu.py trains, and 256 times as many.
"""

LENGTHS = (1_000, 1_024, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)


def get_sweep():
    points = [{"evaluation.lengths": length, "evaluation.samples": 100} for length in LENGTHS]
    return points + [{"evaluation.lengths": length, "evaluation.samples": 25} for length in (128_000, 256_000, 262_144)]
