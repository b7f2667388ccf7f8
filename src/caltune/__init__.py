"""caltune: fine-tune language models so that the probability on an answer is the probability that it is right."""

__version__ = "0.1.0"
