"""BABILong qa1 from 16,000 to 50 million tokens, a pass for each length; among them 4,194,304, 256 times the 16,384 tokens to which
configs/babilong_qa1_h200.py trains. The points of docs/results/babilong.md, 2 billion tokens: 262 s on one H200."""


def get_sweep():
    samples = {16_000: 96, 128_000: 32, 1_000_000: 32, 4_194_304: 16, 10_000_000: 16, 50_000_000: 32}
    return [{"evaluation.lengths": length, "evaluation.samples": n, "evaluation.batch_size": 16} for length, n in samples.items()]
