"""Files that caltune reads and writes."""

from caltune.formats.scores import ScoreFile, read_scores, write_scores

__all__ = ["ScoreFile", "read_scores", "write_scores"]
