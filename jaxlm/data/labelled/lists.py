"""Lists of words by which texts are put into groups: a text belongs to a group when it holds one of its words.

They are lists and are called so wherever a figure rests on them: a text that names a group is not a text by one, nor
always about one. They hold the neutral names of groups only: a slur would put a text into a group because it is
hateful, and the group would then tell the label. The choice of groups follows the identity terms of Dixon et al. 2018
(https://dl.acm.org/doi/10.1145/3278721.3278729) and the target communities of HateXplain.
"""

from collections.abc import Mapping, Sequence

import numpy as np

LISTS: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {
        "women": ("woman", "women", "female", "females", "girl", "girls", "lady", "ladies", "she", "her", "mother",
                  "mothers", "wife", "wives", "daughter", "sister", "feminist", "feminists"),
        "men": ("man", "men", "male", "males", "boy", "boys", "he", "his", "him", "father", "fathers", "husband",
                "son", "brother", "guy", "guys"),
        "transgender": ("trans", "transgender", "transgenders", "transsexual", "transsexuals", "nonbinary"),
        "gay": ("gay", "gays", "lesbian", "lesbians", "lgbt", "lgbtq", "homosexual", "homosexuals", "bisexual",
                "queer", "queers"),
    },
    "ethnicity": {
        "black": ("black", "blacks", "african", "africans", "africanamerican"),
        "white": ("white", "whites", "caucasian", "caucasians"),
        "asian": ("asian", "asians", "chinese", "japanese", "korean", "koreans", "vietnamese", "filipino"),
        "latino": ("latino", "latinos", "latina", "latinas", "hispanic", "hispanics", "mexican", "mexicans"),
        "arab": ("arab", "arabs", "arabic"),
    },
    "religion": {
        "muslim": ("muslim", "muslims", "islam", "islamic", "mosque", "mosques", "quran", "koran"),
        "jewish": ("jew", "jews", "jewish", "judaism", "israel", "israeli", "israelis", "synagogue"),
        "christian": ("christian", "christians", "christianity", "catholic", "catholics", "church", "churches",
                      "jesus"),
    },
    "origin": {
        "immigrants": ("immigrant", "immigrants", "immigration", "migrant", "migrants", "refugee", "refugees",
                       "foreigner", "foreigners", "alien", "aliens"),
        "africa": ("africa", "african", "africans", "somali", "somalis", "nigerian", "nigerians"),
        "latin_america": ("mexico", "mexican", "mexicans", "latino", "latinos", "hispanic", "hispanics"),
        "middle_east": ("arab", "arabs", "syrian", "syrians", "iran", "iranian", "turk", "turks", "turkish", "israel",
                        "israeli", "palestine", "palestinian", "palestinians"),
        "asia": ("asian", "asians", "china", "chinese", "japan", "japanese", "korea", "korean", "india", "indian",
                 "indians", "pakistan", "pakistani", "pakistanis"),
        "europe": ("europe", "european", "europeans", "german", "germans", "germany", "british", "english", "french",
                   "swedish", "sweden", "uk", "england", "france"),
    },
}  # fmt: skip
"""Attribute -> group -> words. A word may stand for a group of several attributes, and a text may be in several
groups."""


def groups_of(attributes: Sequence[str]) -> list[tuple[str, str]]:
    """(attribute, group) in order. Raises ValueError for an attribute without a list."""
    if unknown := [name for name in attributes if name not in LISTS]:
        raise ValueError(f"attribute {unknown[0]!r} has no word list; there are {', '.join(LISTS)}")
    return [(attribute, group) for attribute in attributes for group in LISTS[attribute]]


def identity_terms() -> frozenset[str]:
    """Every word of every list."""
    return frozenset(word for groups in LISTS.values() for words in groups.values() for word in words)


def membership(texts: Sequence[Sequence[str]], groups: Mapping[str, Sequence[str]]) -> np.ndarray:
    """bool [texts, groups]: whether a text (its lower-case words) holds a word of the group's list."""
    listed = [frozenset(words) for words in groups.values()]
    return np.array([[not mine.isdisjoint(text) for mine in listed] for text in texts], bool).reshape(-1, len(listed))
