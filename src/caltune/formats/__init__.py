"""Files that caltune reads and writes."""

from caltune.formats.features import read_features
from caltune.formats.knowledge import KnowledgeFile, read_knowledge, write_knowledge
from caltune.formats.predictions import AnswersFile, read_answers, write_answers
from caltune.formats.scores import ScoreFile, read_scores, write_scores

__all__ = [
    "AnswersFile",
    "KnowledgeFile",
    "ScoreFile",
    "read_answers",
    "read_features",
    "read_knowledge",
    "read_scores",
    "write_answers",
    "write_knowledge",
    "write_scores",
]
