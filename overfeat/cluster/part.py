"""Part i of n of a job, for arrays of jobs that share nothing but a folder."""

from dataclasses import dataclass

from overfeat.errors import InputError


@dataclass(frozen=True)
class Part:
    """Every count-th item, from the index-th; the first part has index 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, number: int) -> bool:
        """Whether the item of this number, from 0, is in this part; each item is in one part."""
        return number % self.count == self.index - 1


def parse_part(text: str) -> Part:
    """Parse "3/8", the third of eight parts. Raises InputError."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"{text!r} is no part: write I/N, such as 3/8, the third of eight; I from 1 to N")
    return Part(int(index), int(count))
