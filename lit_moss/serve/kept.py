"""A bounded store for values that may be requested again."""

import time
from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by key; the least recently used value is dropped first. For use by one thread.

    Args:
        most: Maximum number of values.
        seconds: Maximum age of a value in seconds.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self._values: OrderedDict[str, tuple[float, Value]] = OrderedDict()

    def put(self, key: str, value: Value) -> None:
        """Stores a value, replacing an earlier value of the key."""
        self._values[key] = time.monotonic() + self.seconds, value
        self._values.move_to_end(key)
        while len(self._values) > self.most:
            self._values.popitem(last=False)

    def get(self, key: str) -> Value | None:
        """The value; None if there is none or it was dropped."""
        if key not in self._values:
            return None
        expires, value = self._values[key]
        if expires <= time.monotonic():
            del self._values[key]
            return None
        self._values.move_to_end(key)
        return value

    def __len__(self) -> int:
        return len(self._values)
