"""BABILong from 1,000 to 1,048,576 tokens, a pass for each length: 100 samples, 24 from 128,000 on, 10 of the longest two.

Lengths are the published ones, and two more: the 4,096 tokens to which configs/babilong_qa1_cpu.py trains, and 256 times as many (instead
of a million).
"""

LENGTHS = (1_000, 2_000, 4_000, 4_096, 8_000, 16_000, 32_000, 64_000)


def get_sweep():
    def points(lengths, samples, rows):
        return [{"evaluation.lengths": n, "evaluation.samples": samples, "evaluation.batch_size": rows} for n in lengths]

    return points(LENGTHS, 100, 50) + points((128_000, 256_000), 24, 24) + points((512_000, 1_048_576), 10, 10)
