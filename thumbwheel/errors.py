"""Everything that goes wrong on purpose.

ThumbwheelError                what was wrong and what to do, in one message for people
├── InvalidInput               a caller's value is out of range (names the field)
├── NotFound                   no such response, turn or version
├── NotAuthenticated           no key or token, or one that is not valid (any more)
├── NotAllowed                 it exists, and is not the caller's; or the caller's key has not the scope for it
├── Conflict                   same idempotency key, other content; or a name that is taken
├── NotReady                   the thing asked for is in a state that does not allow it (yet)
├── Overloaded                 the queue is full; try again after `retry_after` seconds
├── StoreUnavailable           Redis is away or refuses writes; nothing was changed
├── CorruptRecord              a stored record fails its checksum
├── AdapterRefused             an adapter that must not reach the engine
├── EngineDead                 the engine's process is gone; the server must be started anew
├── LeaseLost                  another learner leads; nothing was committed
├── PersonErased               somebody whose votes a cycle has learned from was erased meanwhile; it starts anew
├── TrainingDiverged           a loss is not finite, or the policy has collapsed; nothing of this cycle is released
├── LearnerFrozen              a tripwire has tripped; nothing trains until a person releases it
└── SetupError                 configuration, disk, port, model or Redis: cannot start
"""

from __future__ import annotations


class ThumbwheelError(Exception):
    """Root of the tree. Its text may be shown to the caller."""


class InvalidInput(ThumbwheelError):
    """`field` is the path of the offending value, such as ``input.messages[2].role``."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class NotFound(ThumbwheelError):
    """No such thing. `field` is the one that named it, where that is worth telling."""

    field = ""


class NotAuthenticated(ThumbwheelError):
    """Nobody knows who calls."""


class NotAllowed(ThumbwheelError):
    """It is somebody else's, or beyond what the caller's key allows."""


class Conflict(ThumbwheelError):
    """It exists already, with other content."""


class NotReady(ThumbwheelError):
    """The call was right, the time is not: nothing to roll back to, a rejected version, a server still loading."""


class Overloaded(ThumbwheelError):
    """`retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreUnavailable(ThumbwheelError):
    """`retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CorruptRecord(ThumbwheelError):
    """The bytes are not what was written."""


class AdapterRefused(ThumbwheelError):
    """`reason` is a short label for metrics, such as ``not_finite``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EngineDead(ThumbwheelError):
    """No request can be answered by this process any more."""


class LeaseLost(ThumbwheelError):
    """The fencing token is no longer the newest."""


class PersonErased(ThumbwheelError):
    """What was learned from somebody who is to be forgotten must not go live."""


class TrainingDiverged(ThumbwheelError):
    """The numbers of a training run left the finite range, or the policy says one thing to everybody."""


class LearnerFrozen(ThumbwheelError):
    """A person has to look at what was voted."""


class SetupError(ThumbwheelError):
    """Said before anything is started."""
