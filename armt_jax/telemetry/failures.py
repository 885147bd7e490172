"""How a command ends when something is wrong that its user can mend."""

import os
import sys
from collections.abc import Callable

from absl import logging

# Exit code after SIGTERM: the state was saved; start the same command again (EX_TEMPFAIL).
EXIT_PREEMPTED = 75


def one_line_errors(run: Callable, *kinds: type[Exception]) -> Callable:
    """`run(argv)` as an absl main: an error of these kinds, a ValueError or an OSError becomes one clear line and exit code 1.

    Other exceptions are bugs and keep their traceback; ARMT_JAX_TRACEBACK=1 shows it for all.
    """

    def main(argv):
        try:
            run(argv)
        except (ValueError, OSError, *kinds) as error:
            if os.environ.get("ARMT_JAX_TRACEBACK"):
                raise
            logging.error("%s: %s (set ARMT_JAX_TRACEBACK=1 for the traceback)", type(error).__name__, error)
            sys.exit(1)

    return main
