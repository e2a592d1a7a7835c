"""What goes wrong with checkpoints, as one kind of error that a person can read."""


class CheckpointError(ValueError):
    """A checkpoint could not be written, is damaged, or belongs to another model; the message says which."""


class Damaged(CheckpointError):
    """A file of a checkpoint could be read, and has another size or other bytes than were saved."""
