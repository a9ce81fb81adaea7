"""Shows that work goes on."""


class Pulse:
    """Counts batches, for whoever watches that there are more of them.

    Attributes:
        beats: How many there were.
    """

    def __init__(self) -> None:
        self.beats = 0

    def beat(self) -> None:
        """A batch is about to be computed."""
        self.beats += 1
