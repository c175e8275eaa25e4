"""One exception tree, split by what the caller does next.

GridpipeError
├── TransientError        retry the same work; it may succeed
│   └── UnavailableError  a service does not answer (CLI exit 3, HTTP 503)
├── PermanentError        the input is at fault; quarantine or refuse it
│   └── ContractError     a frame, file or request breaks its schema
└── ConfigurationError    refuse to start (CLI exit 2); carries one line per problem

WorkerFailedError         no GridpipeError: a crash (exit 1), after which the process is started again
"""

from __future__ import annotations

from collections.abc import Sequence


class GridpipeError(Exception):
    """Base of every error that gridpipe raises on purpose."""


class TransientError(GridpipeError):
    """The same call may succeed later."""


class UnavailableError(TransientError):
    """A service that we need does not answer."""


class PermanentError(GridpipeError):
    """Repeating the call cannot help."""


class ContractError(PermanentError):
    """Data breaks the schema that it must have."""


class ConfigurationError(GridpipeError):
    """The process must not start like this.

    problems : one sentence each, naming the setting or file and what to do.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class WorkerFailedError(Exception):
    """The worker cannot go on without risking data; the process must end and be started again.

    Not one of the errors above, which end a process for good: their exit code says that a start cannot help.
    """
