"""Pure encoders and decoders of gradients, each with a stated bound of its error."""

from jaxlm.collectives.codecs.codec import Codec, Codes, payload
from jaxlm.collectives.codecs.quantised import BFloat16, Exact, Float8, Int4, Int8
from jaxlm.collectives.codecs.sparse import Sign, TopK

__all__ = ["BFloat16", "Codec", "Codes", "Exact", "Float8", "Int4", "Int8", "Sign", "TopK", "payload"]
