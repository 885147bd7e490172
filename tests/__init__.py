"""A package, so that `tests.memory.harness` is found here even where another distribution has installed a `tests` of its own."""
