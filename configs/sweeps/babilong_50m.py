"""BABILong at 1, 10 and 50 million tokens, a pass for each length, after one at 16,000 that says what it has learned; and at 4,194,304,
256 times the 16,384 tokens to which configs/babilong_qa1_h200.py trains."""


def get_sweep():
    def point(length, samples):
        return {"evaluation.lengths": length, "evaluation.samples": samples, "evaluation.batch_size": samples}

    return [point(16_000, 100), *(point(length, 32) for length in (1_000_000, 4_194_304, 10_000_000, 50_000_000))]
