"""The forecast of a run's time after its first steps."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

STEPS = 20  # before the forecast, or half of the run where it has fewer
VALIDATION_COST = 0.5  # of a batch, in steps: there is no backward pass
MINUTE, HOUR, DAY = 60, 3600, 24 * 3600


class Forecast:
    """Measures steps and what follows an epoch; the first step, which starts the workers, is left out.

    Args:
        remaining: The steps that are left of the run.
        steps: Those of an epoch.
        validation_steps: Batches of validation, whose time is estimated until an epoch has ended.
        clock: Seconds.
    """

    def __init__(
        self, remaining: int, steps: int, validation_steps: int, clock: Callable[[], float] = time.perf_counter
    ):
        self.remaining, self.steps, self.validation_steps, self.clock = remaining, steps, validation_steps, clock
        self.due = min(STEPS, max(1, remaining // 2))  # in steps from now on
        self.completed, self.step_times, self.end_times = 0, list[float](), list[float]()
        self.mark = clock()

    @property
    def pending(self) -> bool:
        """Whether steps are still to be measured."""
        return self.completed < self.due

    def step(self) -> str | None:
        """Count a step that ends now; the forecast where it is due."""
        self.completed += 1
        self.step_times.append(self._lap())
        return self._describe() if self.completed == self.due else None

    def end_epoch(self) -> None:
        """Count the time since the last step as that of validation and files."""
        self.end_times.append(self._lap())

    def _lap(self) -> float:
        before, self.mark = self.mark, self.clock()
        return self.mark - before

    def _describe(self) -> str:
        measured = self.step_times[1:] or self.step_times
        step = sum(measured) / len(measured)
        ends = self.end_times or [VALIDATION_COST * self.validation_steps * step]
        epoch = self.steps * step + sum(ends) / len(ends)
        epochs = -(-self.remaining // self.steps) - len(self.end_times)  # whose end is to come
        to_go = (self.remaining - self.completed) * step + epochs * sum(ends) / len(ends)
        times = f"{format_duration(step)} a step, {format_duration(epoch)} an epoch, {format_duration(to_go)} to go"
        return f"forecast: {times}; done at about {format_time(datetime.now(), to_go)}"


def format_duration(seconds: float) -> str:
    """A time in its largest units: 0.35 s, 14 min, 1 h 52 min, 2 d 3 h."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 2 * MINUTE - 0.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / MINUTE)
    if minutes < HOUR // MINUTE:
        return f"{minutes} min"
    if minutes < 2 * DAY // MINUTE:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(seconds / HOUR) // 24} d {round(seconds / HOUR) % 24} h"


def format_time(now: datetime, seconds: float) -> str:
    """The time of day that is so many seconds later, with the date if that is another day."""
    later = now + timedelta(seconds=seconds)
    return later.strftime("%H:%M" if later.date() == now.date() else "%H:%M on %Y-%m-%d")
