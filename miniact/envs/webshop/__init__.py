"""WebShop: a compact re-implementation that reads the official files.

env.py         pages of text, searched and clicked through
data.py        products and shoppers' wishes, in the official formats
goals.py       goals and the reward
search.py      BM25 over the products
expert.py      what the expert searches for and chooses
catalogue.py   an invented shop in the same formats: no download; drawn from catalogue.yaml
words.yaml     lists of words
"""

from __future__ import annotations

from pathlib import Path

import yaml

WORDS: dict[str, list[str]] = {  # lists of words, by their use
    use: text.split()
    for use, text in yaml.safe_load(Path(__file__).with_name("words.yaml").read_bytes()).items()
}
