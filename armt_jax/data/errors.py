"""The error of everything about data: what is wrong with which file, the rule, and what to do."""


class DataError(ValueError):
    """Data, a tokenizer or a cache that cannot be used."""


class InvalidText(DataError):
    """Bytes that are not UTF-8. `offset`: of the first bad byte, counted from the start of what was given to `encode`."""

    def __init__(self, offset: int, reason: str):
        self.offset, self.reason = offset, reason
        super().__init__(
            f"byte {offset} is not valid UTF-8 ({reason}): convert the text to UTF-8, "
            "or read it with the 'bytes' tokenizer, which takes any byte"
        )
