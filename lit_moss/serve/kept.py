"""A bounded memory of what may be asked for again."""

import time
from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by key; the least recently used is dropped first. For one thread.

    Args:
        most: Values at once.
        seconds: Age at which a value is dropped.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self._values: OrderedDict[str, tuple[float, Value]] = OrderedDict()

    def put(self, key: str, value: Value) -> None:
        """Keeps a value, in place of the key's earlier one."""
        self._values[key] = time.monotonic() + self.seconds, value
        self._values.move_to_end(key)
        while len(self._values) > self.most:
            self._values.popitem(last=False)

    def get(self, key: str) -> Value | None:
        """The value; None if there is none, or it was dropped."""
        expires, value = self._values.get(key, (0.0, None))
        if expires < time.monotonic():
            self._values.pop(key, None)
            return None
        self._values.move_to_end(key)
        return value

    def __len__(self) -> int:
        return len(self._values)
