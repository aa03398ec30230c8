"""What is known of one model's images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Images:
    """The images of one model: in host memory, or parked in a file."""

    parkable_bytes: int = 0
    """What may be parked."""
    parked_bytes: int = 0
    file_bytes: int = 0
    """What its file takes, also of images that have come back."""
    asked_until_s: float | None = None
    """It was asked to park, and is not counted on any more from then on."""
    returning: bool = False
    """It has host memory for its images, which it reads back."""
    file_limit_bytes: int = 0
    """What its file may take, by the order that it was given last."""
    leaves: bool = False
    """It was asked to leave as well."""
    why: str = ""
    """Why it could not park when it was asked last."""
    passes: bool = False
    """It may be able to soon."""
    not_before_s: float = 0.0
    """When it may be asked again."""
    parks: int = 0
    """How often it has parked."""
    read_backs: int = 0
    read_back_bytes: int = 0
    read_back_s: float = 0.0

    def granted(self, size_bytes: int, *, returns: bool) -> None:
        """So much host memory is for new images, or for those that were parked."""
        if returns:
            self.returning = True
        else:  # until the model says what it has
            self.parkable_bytes += size_bytes

    def come(self) -> None:
        """The model is about to be in use, so that it is not asked any more as one that is out."""
        if not self.why:
            self.not_before_s = 0.0

    def unparked(self, size_bytes: int, file_bytes: int, read_s: float) -> None:
        """So much was read back; 0 if it is parked still."""
        self.returning = False
        self.file_bytes = file_bytes
        if size_bytes > 0:
            self.parked_bytes = 0
            self.read_backs += 1
            self.read_back_bytes += size_bytes
            self.read_back_s += read_s
