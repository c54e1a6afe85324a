"""WebShop's search engine: BM25 over the products, built once and kept on disk.

    score(d, q) = Σ_t idf(t)·f(t,d) / (f(t,d) + k1·(1 − b + b·|d|/mean |d|)),    t the words of q

with Lucene's idf, k1 = 0.9 and b = 0.4, as in the original, which asks Lucene itself. Words are
lower case, without stop words and possessive 's, and reduced to their stems (Porter). Lucene splits
a few words differently ("3.5", "wi-fi"), so ranks can differ from the original's here and there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from miniact import UserError
from miniact.backends.models import cache_root
from miniact.envs.webshop import WORDS
from miniact.runs.files import whole_folder, write_text

HITS = 50  # results of a search, at most
LONGEST = 1024  # words of a query that count, as in Lucene
_VERSION = "1"  # of what `words` does: another version does not read this one's indexes
_SUMS = "sums.txt"
_STOP_WORDS = frozenset(WORDS["stop words"])


def words(text: str) -> list[str]:
    """The stems that stand for a text.

    >>> words("The women's Running shoes, size 7")
    ['women', 'run', 'shoe', 'size', '7']
    """
    tokens = re.findall(r"\w+", re.sub(r"['’]s\b", "", text.lower()))
    return _stemmer().stemWords([word for word in tokens if word not in _STOP_WORDS])


class Index:
    """Documents that can be searched; a document is known by its place in the list."""

    def __init__(self, bm25: Any) -> None:
        self._bm25 = bm25

    def search(self, query: str) -> list[int]:
        """The places of the best documents, best first; equals in the order of the list."""
        known = [word for word in words(query) if word in self._bm25.vocab_dict][:LONGEST]
        if not known:
            return []
        scores: np.ndarray = self._bm25.get_scores(known)
        k = min(HITS, int(np.count_nonzero(scores)))
        least = np.partition(scores, -k)[-k]
        best = np.flatnonzero(scores >= least)
        return best[np.argsort(-scores[best], kind="stable")][:k].tolist()


def open_index(documents: Sequence[str]) -> Index:
    """The index of these documents: from the cache, or built and put there.

    The cache knows an index by the documents' content. One that is damaged is built again.
    """
    folder = cache_root() / "webshop" / f"index-{_key(documents)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            index = _read(folder)
            if index is None:
                with whole_folder(folder) as part:
                    _build(documents, part)
                index = _read(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot keep the search index ({error.strerror}); set MINIACT_CACHE to a "
            "folder that can be written to"
        ) from None
    assert index is not None
    return index


def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("porter")


def _key(documents: Sequence[str]) -> str:
    import bm25s

    digest = hashlib.sha256(f"{_VERSION}/{bm25s.__version__}".encode())
    for document in documents:
        digest.update(document.encode() + b"\0")
    return digest.hexdigest()[:16]


def _build(documents: Sequence[str], folder: Path) -> None:
    import bm25s

    vocabulary: dict[str, int] = {}
    rows = [[vocabulary.setdefault(w, len(vocabulary)) for w in words(d)] for d in documents]
    bm25 = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    vocabulary.setdefault("", len(vocabulary))  # so that it is never empty
    bm25.index((rows, vocabulary), show_progress=False)
    bm25.save(folder, show_progress=False)  # arrays and JSON; nothing is pickled
    write_text(folder / _SUMS, _sums(folder))


def _sums(folder: Path) -> str:
    files = sorted(file for file in folder.iterdir() if file.name != _SUMS)
    return "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)


def _read(folder: Path) -> Index | None:
    """A saved index; None where there is none, or where any byte of it has changed."""
    import bm25s

    if not folder.is_dir() or not (folder / _SUMS).is_file():
        return None
    if (folder / _SUMS).read_bytes() != _sums(folder).encode():
        return None
    return Index(bm25s.BM25.load(folder))
