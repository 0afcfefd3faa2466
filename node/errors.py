"""What can go wrong for a person: one class an exit code, each message one line naming the thing and the remedy."""


class HerdError(Exception):
    """The operation failed; the message is a sentence for a person. Exit code 1, HTTP 500."""

    exit_code = 1
    http_status = 500


class UsageError(HerdError):
    """The command, the configuration or an argument is wrong. Exit code 2, HTTP 400."""

    exit_code = 2
    http_status = 400


class NotFound(HerdError):
    """No such model, member or file. Exit code 3, HTTP 404."""

    exit_code = 3
    http_status = 404


class NodeUnreachable(HerdError):
    """No node of this home is running, or it does not answer. Exit code 4."""

    exit_code = 4
    http_status = 503


class VerificationFailed(HerdError):
    """Bytes did not match their digest; nothing wrong was kept. Exit code 5, HTTP 502."""

    exit_code = 5
    http_status = 502


class JoinRefused(HerdError):
    """A bootstrap peer and this node do not admit each other. Exit code 6, HTTP 403."""

    exit_code = 6
    http_status = 403


class TransferFailed(HerdError):
    """A blob did not come in: no holder was left, or none made progress. Exit code 1, HTTP 502."""

    http_status = 502


def only_error(error: BaseException) -> BaseException:
    """The one error inside the groups that nurseries make."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
