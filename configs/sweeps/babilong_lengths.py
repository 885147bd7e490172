"""BABILong from 1,000 to 256,000 tokens, a pass for each length: 100 samples, 25 at the longest two."""

LENGTHS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)


def get_sweep():
    points = [{"evaluation.lengths": length, "evaluation.samples": 100} for length in LENGTHS]
    return points + [{"evaluation.lengths": length, "evaluation.samples": 25} for length in (128_000, 256_000)]
