"""Which option of a question a text means, by the language model's vectors."""

from collections.abc import Sequence

import numpy as np

from pluralllm_fl.embedding.embedder import TextEmbedder
from pluralllm_fl.preferences import Question


def nearest_options(embedder: TextEmbedder, pairs: Sequence[tuple[Question, str]]) -> list[int]:
    """Return the option nearest to each text: by the cosine of their vectors.

    Parameters
    ----------
    embedder : TextEmbedder
    pairs : sequence of (Question, str)
        A text, not empty and none of the options, beside its question. All are embedded in one
        pass.

    Notes
    -----
    The vectors are those of the options' side of the embedding template. A language model that
    sees little but topic and wording puts "not tea" near "tea": look at the matches before you
    train on them. docs/alignment.md says how often long sentences are read right; to take the
    directions of wordings out of the vectors did not help.
    """
    sets = [Question(question.text, (said, *question.options)) for question, said in pairs]
    table = embedder.embed(sets)
    part = embedder.dimension // len(embedder.parts)
    vectors = table.vectors[:, -part:]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for one in sets:
        said, *options = vectors[table.first_row[one.id] :][: len(one.options)]
        found.append(int(np.argmax(np.array(options) @ said)))
    return found
