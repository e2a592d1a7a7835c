"""Which language a text is in: the model that comes with `py3langid`, the same answer every time, nothing fetched."""

import functools
from typing import Any

from jaxlm.data.cleaning.pages import missing
from jaxlm.data.config import DataError

LOOKED_AT = 10_000  # characters; the limit of langdetect, which C4 used


def identify(text: str) -> tuple[str, float]:
    """The most likely language of a text (ISO 639-1 where there is such a code) and its probability."""
    return _identifier().classify(text[:LOOKED_AT])


def check_language(code: str) -> None:
    """Raises DataError for a code that the model does not know."""
    known = sorted(_identifier().labels)
    if code not in known:
        raise DataError(f"language={code!r} is unknown; these are known: {' '.join(known)}")


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise missing("py3langid", "finding the language of a page") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
