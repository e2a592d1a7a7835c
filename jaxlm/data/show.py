"""What the model sees at a step, written for a person."""

from jaxlm.data.corpus import Corpus
from jaxlm.data.loader import Loader


def show(corpus: Corpus, loader: Loader, step: int, *, rows: int = 4, characters: int = 96) -> str:
    """The first rows of a step, decoded document by document: what is read, where each begins and ends."""
    batch = loader.fetch(step)
    size, sequence = batch["tokens"].shape
    counted = int(batch["weights"].sum())
    lines = [
        f"step {step}: {size} rows x {sequence} tokens, {counted:,} targets count "
        f"({counted / (size * sequence):.1%}), hash {loader.fingerprint(step)}"
    ]
    sizes = {part.name: len(part.rows) for part in loader.parts}
    stream = loader.parts[0].stream
    for row in range(min(rows, size)):
        segments = batch["segments"][row]
        place = loader.place(step, row)
        part = f"{place.part}, " if loader.mixed else ""
        lines.append(f"\nplace {row}: {part}row {place.row:,} of {sizes[place.part]:,}, epoch {place.epoch}")
        for segment in range(1, int(segments.max()) + 1):
            ids = batch["tokens"][row][segments == segment]
            begins = "BOS " if ids[0] == corpus.tokenizer.bos else "... "
            ends = " EOS" if ids[-1] == corpus.tokenizer.eos else " ..."
            cut = stream.prompt(ids)
            sides = ([ids[:cut]] if cut else []) + [ids[cut:]]
            text = " BOS ".join(_shortened(corpus.tokenizer.decode(side.tolist()), characters) for side in sides)
            lines.append(f"  document {segment}, {len(ids):>4} tokens  {begins}{text}{ends}")
        if padding := int((segments == 0).sum()):
            lines.append(f"  padding,    {padding:>4} tokens")
    if size > rows:
        lines.append(f"\n({size - rows} more rows)")
    return "\n".join(lines)


def _shortened(text: str, characters: int) -> str:
    """One line: control characters escaped, the middle left out of a long text."""
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    half = characters // 2
    return f"[{line}]" if len(line) <= characters else f"[{line[:half]} ~ {line[-half:]}]"
